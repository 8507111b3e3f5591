"""``rollout.check_trajectory_format`` finds contradictions in trajectories; tracing logs requests."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import replace

import pytest
from scripted_client import ScriptedClient, build_encoder, build_parts

from archon_core.contracts.workflows import NO_VERSION, Trajectory
from archon_core.errors import ServerError, TrainingError
from archon_rl.collector.sampling import GroupSampler
from archon_rl.datasets.placed_record import PlacedRecord
from archon_rl.trainer.rollout_batch import rollout_seeds
from archon_rl.workflows.rlvr import RLVR
from archon_rl.workflows.token_checks import check_tokens

RECORD = PlacedRecord({"question": "1+1=", "answer": "2"}, "sums.jsonl:7")
TURNS = Trajectory(
    (1, 2, 3, 4, 5, 6),
    (False, True, True, False, False, True),
    (0.0, -0.5, -0.1, 0.0, 0.0, 0.0),
    (NO_VERSION, 3, 4, NO_VERSION, NO_VERSION, 3),
    metadata={"turns": 2},
)
"""Two turns. The second may have an older version, because an agent makes calls in parallel."""


def changed(field, place, value):
    values = list(getattr(TURNS, field))
    values[place] = value
    return replace(TURNS, **{field: tuple(values)})


WRONG = [
    (changed("loss_mask", 0, True), "a loss_mask that marks the first token"),
    (changed("token_ids", 4, -1), "the token id -1 at token 4"),
    (changed("token_ids", 1, 2.0), "the token id 2.0 at token 1"),
    (changed("logprobs", 0, -1.0), "log-probability -1.0 and version -1 at token 0, which the loss_mask leaves out"),
    (changed("versions", 3, 2), "log-probability 0.0 and version 2 at token 3"),
    (changed("logprobs", 1, 0.5), "the log-probability 0.5 at token 1"),
    (changed("logprobs", 1, math.nan), "the log-probability nan at token 1"),
    (changed("logprobs", 1, -math.inf), "the log-probability -inf at token 1"),
    (changed("versions", 1, NO_VERSION), "version -1 at token 1"),
    (changed("versions", 2, 2), "version 2 at token 2 after version 3"),
    (replace(TURNS, metadata={"a": math.nan}), "metadata with a number that is not finite"),
]


def test_a_consistent_trajectory_passes():
    check_tokens("mine", TURNS)
    check_tokens("mine", changed("logprobs", 1, 1e-6))


@pytest.mark.parametrize(("trajectory", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_contradictions_are_named_with_their_token(trajectory, message):
    with pytest.raises(TrainingError, match=f"^workflow 'mine': found {message}.*; allowed .*; correct the workflow$"):
        check_tokens("mine", trajectory)


def answer(prompt, seed):
    return "2" if seed % 2 else "33..."


class Returns:
    """A workflow that returns one trajectory."""

    def __init__(self, trajectory):
        self.trajectory = trajectory

    async def run(self, client, record, seeds):
        return [self.trajectory]


def sampler(workflow, client, encoder, **options):
    return GroupSampler(workflow, "mine", encoder, client, 2, rollout_seeds(1), None, **options)


@pytest.mark.parametrize("checks", [False, True])
def test_only_the_option_makes_a_sampler_check_tokens(checks):
    encoder = build_encoder()
    wrong = changed("logprobs", 1, 7.0)
    sampling = sampler(Returns(wrong), ScriptedClient(encoder.tokenizer, answer), encoder, checks_tokens=checks)
    if checks:
        with pytest.raises(TrainingError, match=r"the log-probability 7\.0 at token 1"):
            asyncio.run(sampling.sample(5, RECORD))
    else:
        assert asyncio.run(sampling.sample(5, RECORD)).group.trajectories == (wrong,)


def test_tracing_logs_requests_with_group_lengths_versions_and_ends(caplog):
    caplog.set_level(logging.INFO)
    encoder = build_encoder()
    client = ScriptedClient(encoder.tokenizer, answer)
    workflow = RLVR(build_parts(encoder, None))
    asyncio.run(sampler(workflow, client, encoder).sample(5, RECORD))
    assert not caplog.messages
    asyncio.run(sampler(workflow, client, encoder, traces=True).sample(5, RECORD))
    [line] = caplog.messages
    assert line.startswith("group 5: 5 prompt tokens, completions of 2, 2 tokens in ")
    assert "; versions 3; ended by " in line


def test_tracing_logs_failed_requests_too(caplog):
    caplog.set_level(logging.INFO)
    encoder = build_encoder()

    class Dead(ScriptedClient):
        async def generate(self, request, *, group=""):
            raise ServerError("no server in service")

    sampling = sampler(RLVR(build_parts(encoder, None)), Dead(encoder.tokenizer, answer), encoder, traces=True)
    with pytest.raises(ServerError):
        asyncio.run(sampling.sample(5, RECORD))
    [line] = caplog.messages
    assert line.startswith("group 5: 5 prompt tokens, no completion after ")
    assert line.endswith(": ServerError: no server in service")
