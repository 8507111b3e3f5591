"""An RL run is read from its configuration: samples, servers, passes of the trainer, transports."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from archon_core import registry
from archon_core.errors import ConfigError
from archon_plan.answer import Answer, find_answer
from archon_plan.devices import find_device
from archon_plan.request import request_run
from archon_plan.rl_request import Measured, RLRequest, request_rl
from archon_plan.setting import SharedPrompt

EXAMPLES = Path(__file__).parents[2] / "examples"


@functools.cache
def answer_of(name: str, *overrides: str) -> Answer:
    request = request_run(EXAMPLES / name, overrides, registry())
    answer = find_answer(request, find_device("h100"), registry())
    assert isinstance(answer, Answer)
    return answer


def read(name: str, *overrides: str, measured: Measured | None = None) -> RLRequest | None:
    return request_rl(answer_of(name, *overrides), registry(), measured)


def test_a_run_on_sglang_servers() -> None:
    found = read("archon_qwen3_8b.yaml", "sglang.mem_fraction_static=0.8", "sglang.max_running_requests=96")
    assert found is not None
    run = found.run
    assert (run.servers, run.server.tensor, run.server.pipeline) == (4, 2, 1)
    assert (run.server.memory_share, run.server.max_sequences, run.server.launches) == (0.8, 96, 0)
    assert (run.staleness, run.concurrent, run.transport, run.colocated) == (2, 256, "disk", False)
    assert (run.samples.prompts, run.samples.n_samples, run.samples.lengths.limit) == (256, 4, 1024)
    # The decoupled loss compares with the policy at the start of the step; with kl_ctl 0 there is no reference.
    assert [one.name for one in run.passes] == ["update of the actor", "log-probabilities of the actor"]
    assert [one.setting.trains for one in run.passes] == [True, False]
    assert run.trainer_devices == 16
    assert run.server_devices == 8


def test_lengths_are_assumed_with_a_note_or_as_measured() -> None:
    found = read("archon_qwen3_8b.yaml")
    assert found is not None
    assert found.run.samples.prompt_tokens == 512
    assert found.run.samples.lengths.mean == 512
    assert sum("assumed" in note for note in found.notes) == 3
    measured = read("archon_qwen3_8b.yaml", measured=Measured(200.0, 300.0, 1.5))
    assert measured is not None
    assert measured.run.samples.prompt_tokens == 200
    assert (measured.run.samples.lengths.mean, measured.run.samples.lengths.spread) == (300, 1.5)
    assert [note for note in measured.notes if "assumed" in note] == []
    tokens = [one.setting.tokens for one in measured.run.passes]
    assert {one.sequence for one in tokens} == {500}
    with pytest.raises(ConfigError, match="found a mean of 2000 tokens"):
        read("archon_qwen3_8b.yaml", measured=Measured(completion_tokens=2000.0))


def test_a_search_for_divisions_knows_how_the_actor_splits_its_batch() -> None:
    found = read("archon_qwen3_8b.yaml", "actor.mb_spec.granularity=8", "actor.mb_spec.n_mbs_divisor=3")
    assert found is not None
    assert (found.run.granularity, found.run.divisor, found.run.strict) == (8, 3, False)


def test_a_step_trains_on_its_tokens_once() -> None:
    """Mini-batches divide the batch; forward passes take all of it."""
    found = read("archon_qwen3_8b.yaml", "actor.ppo_n_minibatches=4", measured=Measured(500.0, 500.0))
    assert found is not None
    update, forward = found.run.passes
    assert (update.times, forward.times) == (4, 1)
    for one in (update, forward):
        tokens = one.setting.tokens
        trained = one.times * tokens.per_micro_batch * tokens.n_micro_batches * one.setting.dims.dp_shard
        assert found.run.samples.tokens <= trained < 1.2 * found.run.samples.tokens


def test_a_run_whose_own_ranks_sample() -> None:
    found = read("grpo_arithmetic.yaml")
    assert found is not None
    run = found.run
    assert run.colocated
    assert run.servers == run.actor.dims.dp_shard
    assert run.server.max_sequences == 256
    assert run.server.reserved > 0, "weights and optimizer stay on the ranks"
    assert run.server.launches > 4 * 10, "the local engine launches every operation"
    assert run.server_devices == 0


def test_critic_and_reference_are_passes_of_their_own() -> None:
    found = read("ppo_arithmetic.yaml", "actor.kl_ctl=0.1", "ref.backend=archon:d2")
    assert found is not None
    assert [one.name for one in found.run.passes] == [
        "update of the actor",
        "update of the critic",
        "values of the critic",
        "reference",
    ]
    assert found.run.passes[2].setting.anatomy.critic


@pytest.mark.parametrize(
    ("override", "transport"),
    [
        ("rollout.weight_transport=disk", "disk"),
        ("rollout.weight_transport=shm", "shm"),
        ("rollout.weight_transport=distributed", "gloo"),
    ],
)
def test_archons_servers_hold_new_weights_beside_the_old(override: str, transport: str) -> None:
    found = read("grpo_arithmetic_async.yaml", override)
    assert found is not None
    assert found.run.transport == transport
    assert found.run.server.reserved == found.run.server.weights


def test_a_run_that_samples_nothing_has_no_rl_plan() -> None:
    assert read("sft_jsonl.yaml") is None


def test_passes_compute_the_prompts_of_samples_once() -> None:
    lengths = Measured(prompt_tokens=256, completion_tokens=128, spread=0.5)
    asked = read("archon_qwen3_moe.yaml", "actor.enable_tree_training=true", measured=lengths)
    assert asked is not None
    # 10,240 tokens hold 13 prompts with their 4 samples.
    tokens = asked.run.actor.tokens
    assert tokens.per_micro_batch == 13 * (256 + 4 * 128)
    assert (tokens.shared, tokens.sequence) == (SharedPrompt(256, 4.0), 384)
    assert tokens.scored == pytest.approx(512 / 768)
