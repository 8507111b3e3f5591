"""Any workflow is run the same way: checked, counted, and blamed by name."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from scripted_client import ScriptedClient, build_encoder, build_parts

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest
from archon_core.contracts.workflows import Trajectory
from archon_core.errors import ConfigError, RefusedRequestError, ServerError, TrainingError
from archon_rl.algorithm import Algorithm, MixedGroups
from archon_rl.collector.group import group_data, read_group
from archon_rl.collector.messages import packed, unpacked
from archon_rl.collector.sampling import LEFT_OUT, NO_REWARD, NOT_SELECTED, WORKFLOW_FAILED, GroupSampler
from archon_rl.datasets.placed_record import PlacedRecord
from archon_rl.losses.supervised import NegativeLogLikelihood
from archon_rl.rewards.calls import Outcome
from archon_rl.trainer.rollout_batch import rollout_seeds
from archon_rl.workflows.rlvr import RLVR

RECORD = PlacedRecord({"question": "1+1=", "answer": "2"}, "sums.jsonl:7")
ONE = Trajectory((1, 2), (False, True), (0.0, -0.5), (-1, 3), reward=1.0)


def answer(prompt, seed):
    return "2" if seed % 2 else "3..."


def is_right(prompt, completion, record):
    return completion == record["answer"]


def run(workflow, *, selection=None, client=None):
    """The settled group of ``RECORD`` as number 5 of the run."""
    encoder = build_encoder()
    client = client or ScriptedClient(encoder.tokenizer, answer)
    built = workflow(encoder) if callable(workflow) else workflow
    algorithm = Algorithm("test", NegativeLogLikelihood(), selection=selection)
    sampler = GroupSampler(built, "mine", encoder, client, 2, rollout_seeds(1), algorithm)
    return asyncio.run(sampler.sample(5, RECORD))


class Returns:
    """A workflow that returns a value or raises it."""

    def __init__(self, value):
        self.value = value

    async def run(self, client, record, seeds):
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


def test_rlvr_scores_each_completion_and_names_its_group_to_the_servers():
    encoder = build_encoder()
    client = ScriptedClient(encoder.tokenizer, answer)
    settled = run(RLVR(build_parts(encoder, is_right)), client=client)
    [request] = client.requests
    assert client.groups == ["5"]
    assert request.prompt_ids == encoder.encode_prompt(RECORD)
    assert len(set(request.seeds)) == 2
    assert request.decode([encoder.tokenizer.eos_token_id]) == encoder.tokenizer.eos_token
    expected = tuple(float(seed % 2) for seed in request.seeds)
    assert settled.accepted
    assert settled.group.rewards == expected
    assert tuple(one.reward for one in settled.group.trajectories) == expected
    assert settled.group.truncated == tuple(seed % 2 == 0 for seed in request.seeds)
    assert settled.group.n_calls == 2
    assert set(settled.group.seconds) == {"rollout", "reward"}


def test_rlvr_without_a_reward_function_gives_no_rewards():
    settled = run(lambda encoder: RLVR(build_parts(encoder, None)))
    assert settled.group.rewards == (0.0, 0.0)
    assert settled.group.n_calls == 0


def test_completions_without_a_reward_drop_the_group_and_keep_the_reasons():
    failed = Outcome(error="sums.jsonl:7: no", cause="no", timed_out=True)
    settled = run(lambda encoder: RLVR(build_parts(encoder, lambda p, c, r: 1.0 if c == "2" else failed)))
    assert settled.reason == NO_REWARD
    assert set(settled.group.failures) == {failed}
    assert settled.group.n_calls == 2
    assert settled.group.rewards == settled.group.trajectories == ()


def test_a_group_that_the_algorithm_rejects_keeps_its_rewards():
    settled = run(lambda encoder: RLVR(build_parts(encoder, lambda *_: 1.0)), selection=MixedGroups())
    assert settled.reason == NOT_SELECTED
    assert settled.group.rewards == (1.0, 1.0)
    assert settled.group.trajectories == ()


def test_a_workflow_that_returns_none_leaves_its_record_out():
    settled = run(Returns(None))
    assert settled.reason == LEFT_OUT
    assert settled.group.failures == ()


@pytest.mark.parametrize(
    "error", [KeyError("x"), RefusedRequestError("too long"), SystemExit(3), asyncio.CancelledError()]
)
def test_an_exception_costs_the_record_and_names_the_workflow_and_the_record(error):
    settled = run(Returns(error))
    [failure] = settled.group.failures
    assert settled.reason == WORKFLOW_FAILED
    assert failure.error.startswith(f"sums.jsonl:7: workflow 'mine' raised {type(error).__name__}")
    assert "test_running.py" in failure.error
    assert "test_running.py" in failure.cause
    assert failure.value is None


def test_a_workflow_whose_group_is_cancelled_ends_without_a_result():
    class Waits:
        async def run(self, client, record, seeds):
            await asyncio.sleep(60)

    async def cancel() -> bool:
        encoder = build_encoder()
        client = ScriptedClient(encoder.tokenizer, answer)
        sampler = GroupSampler(Waits(), "mine", encoder, client, 2, rollout_seeds(1), None)
        task = asyncio.create_task(sampler.sample(5, RECORD))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(cancel())


@pytest.mark.parametrize("error", [ConfigError("a"), ServerError("b"), TrainingError("c")])
def test_errors_that_concern_the_whole_run_end_it(error):
    with pytest.raises(type(error), match=str(error)):
        run(Returns(error))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, "found a value of type int; allowed is a list of Trajectory, or None"),
        ("text", "found a value of type str; allowed is a list"),
        ([], "found an empty list; allowed is a list of Trajectory, or None to leave the record out"),
        ([ONE, {"ids": ()}], "found a list with a value of type dict at place 1"),
        ([Trajectory((1, 2), (True,), (0.0, 0.0), (1, 1))], "2 token_ids, 1 loss_mask, 2 logprobs, 2 versions"),
        ([Trajectory((), (), (), ())], "found a trajectory with 0 token_ids"),
        ([Trajectory((1, 2), (False, True), (0.0, 0.0), (-1, 1), reward=float("nan"))], "the reward nan; allowed is a"),
        ([Trajectory((1, 2), (False, True), (0.0, 0.0), (-1, 1), reward=None)], "the reward None; allowed is a finite"),
        ([Trajectory((1,), (True,), (0.0,), (1,), routed_experts=[[1]])], "routed_experts of 1 tokens in a trajectory"),
        (
            [replace(ONE, metadata={"seen": {1, 2}})],
            "trajectory with metadata that no file can hold (Object of type set",
        ),
        ([replace(ONE, metadata={"share": np.float32(0.5)})], "metadata that no file can hold (Object of type float32"),
        ([replace(ONE, metadata={"size": 2**64})], "metadata that no file can hold (Integer value out of range)"),
        ([replace(ONE, metadata={"text": "\ud800"})], "metadata that no file can hold ('utf-8' codec can't encode"),
    ],
)
def test_a_result_that_no_step_can_train_on_is_refused_by_the_name_of_the_workflow(value, message):
    with pytest.raises(TrainingError, match=r"^workflow 'mine': found .*; allowed .*; correct the workflow$") as raised:
        run(Returns(value))
    assert message in str(raised.value)


def test_a_group_with_numbers_of_other_types_passes_through_messages():
    found = [replace(ONE, reward=Fraction(1, 2)), replace(ONE, reward=np.float32(0.5), truncated=np.bool_(True))]
    group = run(Returns(found)).group
    assert read_group(unpacked(packed(group_data(group))[8:])) == group
    assert group.rewards == (0.5, 0.5)
    assert [type(one.reward) for one in group.trajectories] == [float, float]
    assert group.truncated == (False, True)


def test_trajectories_without_any_of_the_sampled_tokens_are_refused():
    class Unmarked:
        async def run(self, client, record, seeds):
            request = GenerationRequest((1, 2), GenerationConfig(n_samples=2), tuple(seeds))
            completions = await client.generate(request)
            return [replace(ONE, loss_mask=(False, False)) for _ in completions]

    with pytest.raises(TrainingError, match="found trajectories without a sampled token; allowed is a loss_mask"):
        run(Unmarked())


def test_a_prompt_that_leaves_no_room_for_an_answer_is_a_group_without_sampled_tokens():
    settled = run(Returns([replace(ONE, loss_mask=(False, False))]))
    assert settled.accepted
    assert settled.group.versions == frozenset()


def test_several_trajectories_may_belong_to_one_sample():
    settled = run(Returns((ONE, ONE, ONE)))
    assert settled.accepted
    assert settled.group.rewards == (1.0, 1.0, 1.0)
