"""From completions to a batch: alignment, groups, seeds and rewards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import EngineConfig, OptimizerConfig
from archon_core.contracts.rollout import Completion, GenerationConfig
from archon_core.errors import TrainingError
from archon_core.models.end_tokens import ModelEnds, end_tokens
from archon_rl.trainer.engines import critic_config, reference_config, with_checkpoint
from archon_rl.trainer.minibatches import split_minibatches
from archon_rl.trainer.rollout_batch import Rollout, build_batch, rollout_seeds, sampling_options

A = Completion((7, 8, 2), (-0.5, -0.25, -1.0), (3, 3, 3), "stop")
B = Completion((9,), (-2.0,), (3,), "length")
EMPTY = Completion((), (), (), "length")
ROLLOUT = Rollout(records=({}, {}), prompts=((1, 5), (1,)), completions=((A, B), (B, EMPTY)))


def test_masks_and_log_probabilities_are_aligned_to_predictions():
    batch = build_batch(ROLLOUT.groups(), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert batch.lengths == (5, 3, 2, 1)
    first = batch.select([0])
    assert first.input_ids.tolist() == [1, 5, 7, 8, 2]
    assert first.token_fields["loss_mask"].tolist() == [False, True, True, True, False]
    assert first.token_fields["logprobs"].tolist() == [0.0, -0.5, -0.25, -1.0, 0.0]
    for i, completion in enumerate((A, B, B, EMPTY)):
        row = batch.select([i])
        mask = row.token_fields["loss_mask"]
        assert tuple(row.targets[mask].tolist()) == completion.token_ids
        assert tuple(row.token_fields["logprobs"][mask].tolist()) == completion.logprobs


def test_completions_without_routed_experts_are_refused_if_others_have_them_or_all_must():
    complete = replace(A, routed_experts=torch.zeros(4, 2, 2, dtype=torch.int16))
    for completion, needed in ((complete, False), (A, True)):
        rollout = Rollout(records=({},), prompts=((1, 5),), completions=((completion, B, EMPTY),))
        with pytest.raises(TrainingError, match=rf"found {1 + needed} of 3 completions without routed experts"):
            build_batch(rollout.groups(), torch.zeros(3), needs_experts=needed)


def test_sequences_know_their_group_reward_length_and_end():
    fields = build_batch(ROLLOUT.groups(), torch.tensor([1.0, 2.0, 3.0, 4.0])).sequence_fields
    assert fields["group"].tolist() == [0, 0, 1, 1]
    assert fields["rewards"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert fields["completion_lengths"].tolist() == [3, 1, 1, 0]
    assert fields["truncated"].tolist() == [False, True, True, True]


def test_every_sample_has_a_seed_of_its_own_that_depends_on_nothing_else():
    seeds = [rollout_seeds(1)(record, number) for record in range(12) for number in range(5)]
    assert len(set(seeds)) == len(seeds)
    assert rollout_seeds(1, first=8)(3, 4) == seeds[-1]
    assert rollout_seeds(2)(11, 4) != seeds[-1]


class Echo:
    """Completes every prompt with its own ids."""

    def generate(self, requests):
        self.requests = requests
        return [
            [Completion(r.prompt_ids, (0.0,) * len(r.prompt_ids), (0,) * len(r.prompt_ids), "stop") for _ in r.seeds]
            for r in requests
        ]


def test_ignore_eos_leaves_the_asked_tokens_alone():
    ends = end_tokens(2, ModelEnds("the model", (3,)), [9], ignore_eos=True)
    assert (ends.ids, ends.own) == ((9,), (2, 3))
    assert ends.decision().reason == "gconfig.ignore_eos=true; 9 is gconfig.stop_token_ids"
    assert sampling_options(GenerationConfig(stop_token_ids=[9], ignore_eos=True), ends).stop_token_ids == [9]
    # An evaluation with options of its own ends at the model's tokens all the same.
    assert sampling_options(GenerationConfig(stop_token_ids=[7]), ends).stop_token_ids == [2, 3, 7]


def test_rollout_and_evaluation_end_at_the_same_tokens_each_named_once():
    gconfig = GenerationConfig(n_samples=4, temperature=0.7, stop_token_ids=[9, 2])
    ends = end_tokens(2, ModelEnds("the model", (3, 2)), gconfig.stop_token_ids)
    assert sampling_options(gconfig, ends).stop_token_ids == [2, 3, 9]
    greedy = sampling_options(gconfig, ends, greedy=True)
    assert (greedy.greedy, greedy.n_samples, greedy.stop_token_ids) == (True, 1, [2, 3, 9])


def test_minibatches_share_the_sequences_out_evenly_and_differently_each_step():
    batch = Batch.from_sequences([[i] * (i + 1) for i in range(7)])
    parts = split_minibatches(batch, 3, seed=1)
    assert sorted(len(part) for part in parts) == [2, 2, 3]
    taken = [int(part.input_ids[offset]) for part in parts for offset in part.offsets[:-1]]
    assert sorted(taken) == list(range(7))
    assert [p.lengths for p in split_minibatches(batch, 3, seed=2)] != [p.lengths for p in parts]
    assert split_minibatches(batch, 1, seed=1) == [batch]


@pytest.mark.parametrize("complete", [critic_config, reference_config])
def test_random_weights_of_critic_and_reference_are_kept(complete, tmp_path):
    actor = EngineConfig(backend="archon:d1", path="some/model")
    for initial in (actor, with_checkpoint(actor, tmp_path)):
        drawn = complete(EngineConfig(init_from_scratch=True), initial)
        assert (drawn.path, drawn.init_from_scratch) == (initial.path, True)
        assert not complete(EngineConfig(), initial).init_from_scratch
    assert complete(EngineConfig(), EngineConfig(path="some/model", init_from_scratch=True)).init_from_scratch


def test_a_reference_without_weights_of_its_own_takes_the_actors_and_never_an_optimizer(tmp_path):
    actor = EngineConfig(backend="archon:d1", model_config={"model_type": "qwen3"})
    assert reference_config(EngineConfig(), actor).model_config == actor.model_config
    started = with_checkpoint(actor, tmp_path)
    assert (started.path, started.model_config, started.init_from_scratch) == (str(tmp_path), None, False)
    assert reference_config(EngineConfig(), started).path == str(tmp_path)
    own = EngineConfig(path="other/model", optimizer=OptimizerConfig())
    assert reference_config(own, started).path == "other/model"
    assert reference_config(own, started).optimizer is None
