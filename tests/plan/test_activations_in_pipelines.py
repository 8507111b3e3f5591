"""Planned activations of pipelines: what is in flight against the lists of real schedules, and split backward passes
against the memory of real ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet, finalize

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from archon_core.contracts.packed import PackedSequences
from archon_core.contracts.pipeline import Action, ScheduleSpec, StagePlan
from archon_core.layout.dims import ParallelDims
from archon_core.models.stage import Stage
from archon_core.plugins import registry
from archon_engine import compat
from archon_engine.models.initialize import materialize_empty
from archon_engine.parallel.activation_checkpointing import apply_full_checkpointing
from archon_models_qwen.anatomy import anatomy
from archon_models_qwen.arguments import QwenArguments
from archon_models_qwen.decoder import QwenDecoder
from archon_models_qwen.parallel_plan import parallel_plan
from archon_pipeline.placement import place_stages
from archon_pipeline.stage_passes import StagePasses
from archon_pipeline.timeline import count_peak_activations
from archon_plan.activations import activation_moments, activation_parts, replay
from archon_plan.largest_ranks import largest_ranks
from archon_plan.setting import Setting, Tokens
from archon_plan.stage_activations import StageUsage, stage_usage
from plan.small_models import DENSE
from plan.test_activations_tracked import TOLERANCE

N_RANKS, N_MICRO_BATCHES = 4, 8
SCHEDULES = ("GPipe", "1F1B", "Interleaved1F1B", "InterleavedZeroBubble", "ZBVZeroBubble")
ONE = StageUsage(1.0, 0.0, 0.0, 0.0, 0.0, None, 0.0, 0.0, is_first=False, is_last=False)
"""A stage that keeps one byte per micro-batch and needs nothing else."""


def lists_of(name: str) -> tuple[ScheduleSpec, int, Any]:
    """A schedule, its number of stages, and its lists."""
    spec = registry().get(ScheduleSpec, name)
    n_stages = N_RANKS * spec.usual_stages_per_rank
    return spec, n_stages, spec.load()(N_RANKS, n_stages, N_MICRO_BATCHES)


@pytest.mark.parametrize("name", SCHEDULES)
def test_as_many_micro_batches_are_in_flight_as_the_schedule_says(name):
    _, n_stages, actions = lists_of(name)
    for rank, peak in enumerate(count_peak_activations(actions)):
        moments = [*replay(actions[rank], dict.fromkeys(range(n_stages), ONE), sends=False)]
        assert max(moment.in_flight for moment in moments) == peak
        assert max(moment.total for moment in moments) == peak


@pytest.mark.parametrize("name", SCHEDULES)
def test_leading_states_and_largest_ranks_have_the_peak_of_all(name):
    spec, n_stages, actions = lists_of(name)
    plan = StagePlan(
        tuple(Stage((n,), has_embed=n == 0, has_head=n == n_stages - 1) for n in range(n_stages)),
        place_stages(spec.placement, N_RANKS, n_stages),
    )
    setting = Setting(
        anatomy({**DENSE, "num_hidden_layers": n_stages}),
        ParallelDims(pp=N_RANKS),
        Tokens(1024, N_MICRO_BATCHES),
        stages=plan,
        schedule=spec,
        actions=actions,
        checkpointing="none",
    )
    peaks = []
    for rank in range(N_RANKS):
        usages = {n: stage_usage(setting, plan.stages[n], imbalance=1.0, on_cpu=False) for n in plan.held_by(rank)}
        peaks.append(max(moment.total for moment in replay(actions[rank], usages, sends=True)))
        leading = max(moment.total for moment in activation_moments(setting, rank, imbalance=1.0))
        assert leading == pytest.approx(peaks[rank], rel=1e-12)
    largest = largest_ranks(setting)
    assert max(peaks[rank] for rank in largest) == max(peaks)
    assert name != "1F1B" or len(largest) < N_RANKS


def test_all_schedules_are_tested():
    assert {spec.name for spec in registry().all(ScheduleSpec)} == set(SCHEDULES)


def test_the_last_stage_ends_its_activations_in_the_first_half():
    actions = tuple(map(Action.parse, ("1F0", "1I0", "1F1", "1I1", "1W0", "1W1")))
    [*moments] = replay(actions, {1: replace(ONE, is_last=True)}, sends=False)
    assert max(moment.kept for moment in moments) == 1
    [*moments] = replay(actions, {1: ONE}, sends=False)
    assert max(moment.kept for moment in moments) == 2


def test_stages_of_different_sizes_peak_by_bytes_not_by_number():
    texts = ("0F0", "3F0", "3F1", "3F2", "3B0", "3B1", "3B2", "0F1", "0B0", "0B1")
    stages = {0: replace(ONE, kept=10.0), 3: ONE}
    peak = max(replay(tuple(map(Action.parse, texts)), stages, sends=False), key=lambda moment: moment.total)
    assert (peak.kept, peak.in_flight) == (20, 2)


def test_a_pipeline_rank_holds_its_micro_batches_in_flight_and_messages():
    spec, n_stages, actions = lists_of("1F1B")
    stages = tuple(Stage((n,), has_embed=n == 0, has_head=n == n_stages - 1) for n in range(n_stages))
    setting = Setting(
        anatomy=anatomy({**DENSE, "num_hidden_layers": n_stages}),
        dims=ParallelDims(pp=N_RANKS),
        tokens=Tokens(1024, N_MICRO_BATCHES),
        stages=StagePlan(stages, place_stages(spec.placement, N_RANKS, n_stages)),
        schedule=spec,
        actions=actions,
        checkpointing="full",
    )
    hidden_states, cosines = 1024 * 256 * 2, 1024 * 64 * 2
    for rank in range(N_RANKS):
        parts = {part.name: part.bytes for part in activation_parts(setting, rank)}
        # The block's input and the stage's output, which the last stage does not have.
        # Recomputation starts from cosines and sines of half a head, and from those of both halves.
        kept = hidden_states * (1 if rank == N_RANKS - 1 else 2) + 3 * cosines
        assert parts["activations"] == (N_RANKS - rank) * kept
        assert parts["pipeline messages"] == 2 * hidden_states


class LiveMemory(compat.TorchDispatchMode):
    """Counts the memory of results except weights, from operation to operation. torch's tracker hooks leaves, which a
    split backward pass does not allow.

    Attributes:
        most: the largest sum, in bytes.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.most = 0
        self._live = 0
        self._known: WeakSet[Any] = WeakSet(parameter.untyped_storage() for parameter in module.parameters())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in compat.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self._known:
                storage = tensor.untyped_storage()
                self._known.add(storage)
                self._live += storage.nbytes()
                finalize(storage, self._free, storage.nbytes())
        self.most = max(self.most, self._live)
        return result

    def _free(self, n_bytes: int) -> None:
        self._live -= n_bytes


@pytest.mark.wide
@pytest.mark.parametrize("mode", ["none", "full"])
def test_the_halves_of_a_split_backward_pass_need_what_is_planned(mode):
    tokens, stage = 1024, Stage((0, 1, 2), has_embed=False, has_head=False)
    arguments = QwenArguments.from_hf_config(AutoConfig.for_model(**DENSE), critic=False)
    with torch.device("meta"):
        module = QwenDecoder(arguments, stage).to(torch.bfloat16)
    if mode == "full":
        apply_full_checkpointing(module, parallel_plan(arguments))
    with compat.without_storage():
        materialize_empty(module, "cpu")
        groups: Any = SimpleNamespace(
            whole_parameters=[*module.parameters()],
            weights_in_turn=lambda: _reduced_in_turn(module),
            widen=lambda: None,
        )
        passes = StagePasses(module, groups, is_first=False, is_last=False)
        micro_batch: Any = SimpleNamespace(packed=PackedSequences.from_lengths((512, 512)), input_ids=None)
        with LiveMemory(module) as memory:
            x, gradient = (torch.empty(tokens, arguments.hidden_size, dtype=torch.bfloat16) for _ in range(2))
            passes.forward(0, x, micro_batch, None)  # type: ignore[arg-type]
            passes.backward_input(0, gradient)
            most, memory.most = memory.most, 0
            passes.backward_weight(0)
    setting = Setting(anatomy(DENSE), ParallelDims(), Tokens(tokens, sequence=512), checkpointing=mode)
    usage = stage_usage(setting, stage, imbalance=1.0, on_cpu=True)
    *first, second = replay(tuple(map(Action.parse, ("0F0", "0I0", "0W0"))), {0: usage}, sends=False)
    assert max(moment.total for moment in first) == pytest.approx(most, rel=TOLERANCE)
    # An upper bound: W frees the gradients that I left to it weight by weight, while those of weights are computed.
    assert memory.most <= second.total < 1.05 * memory.most


def _reduced_in_turn(module: QwenDecoder) -> Iterator[list[nn.Parameter]]:
    """Drop a block's gradients after its turn, because plans count gradients of parameters elsewhere."""
    for layer in reversed([*module.layers.values()]):
        yield [*layer.parameters()]
        for weight in layer.parameters():
            weight.grad = None
