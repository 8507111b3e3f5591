"""Recording where tokens go, without a model that has experts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from archon_core.contracts.packed import PackedSequences
from archon_core.contracts.rollout import Completion
from archon_core.errors import ConfigError
from archon_core.ranks.ranks import Ranks
from archon_rollout.routed_experts import RoutingRecorder, join_stages

DONE = Completion((5, 6), (-1.0, -1.0), (0, 0), "stop")


def chosen(*experts: tuple[int, int]) -> torch.Tensor:
    return torch.tensor(experts, dtype=torch.int16)


def test_a_pass_is_written_down_by_layer_and_layers_without_experts_say_so() -> None:
    recorder = RoutingRecorder(3)
    packed = recorder.watch(PackedSequences.from_lengths((2,)))
    packed.record_experts(2, chosen((4, 5), (6, 7)))
    packed.record_experts(0, chosen((0, 1), (2, 3)))
    taken = recorder.taken()
    assert taken.tolist() == [[[0, 1], [-1, -1], [4, 5]], [[2, 3], [-1, -1], [6, 7]]]
    assert taken.dtype == torch.int16


def test_passes_do_not_mix() -> None:
    recorder = RoutingRecorder(2)
    recorder.watch(PackedSequences.from_lengths((1,))).record_experts(0, chosen((1, 2)))
    recorder.watch(PackedSequences.from_lengths((1,))).record_experts(1, chosen((3, 4)))
    assert recorder.taken().tolist() == [[[-1, -1], [3, 4]]]
    recorder.watch(PackedSequences.from_lengths((1,)))
    assert recorder.taken() is None


class TwoStages(Ranks):
    """A pipeline whose other stage says the same of other layers."""

    def gather(self, value: list) -> list:
        other = [[torch.tensor([[[-1, -1], [8, 9]]], dtype=torch.int16) for _ in samples] for samples in value]
        return [value, other]


def test_choices_of_pipeline_stages_are_joined() -> None:
    own = replace(DONE, routed_experts=torch.tensor([[[0, 1], [-1, -1]]], dtype=torch.int16))
    [[joined]] = join_stages([[own]], TwoStages(0, 2))
    assert joined.routed_experts.tolist() == [[[0, 1], [8, 9]]]
    [[joined]] = join_stages([[DONE]], TwoStages(0, 2))
    assert joined.routed_experts.tolist() == [[[-1, -1], [8, 9]]], "a stage of dense layers alone has nothing to say"


def test_a_model_without_experts_is_told_from_one_that_generated_nothing() -> None:
    empty = Completion((), (), (), "length")
    assert join_stages([[empty]], Ranks()) == [[empty]]
    with pytest.raises(ConfigError, match="set it to false"):
        join_stages([[DONE]], Ranks())
