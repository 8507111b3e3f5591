"""Calls take turns at a server's rows, and a short one does not wait for a row at all."""

import pytest

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest
from archon_core.ranks.ranks import Ranks
from archon_rollout import prefilled
from archon_rollout.server.commands import Submit
from archon_rollout.server.decode_thread import DecodeThread
from archon_rollout.server.serving_loop import ServingLoop

ROWS = 4
LONG = 40


def request(n_samples: int, max_new_tokens: int, prompt=(1, 2, 3)) -> GenerationRequest:
    config = GenerationConfig(n_samples=n_samples, max_new_tokens=max_new_tokens)
    return GenerationRequest(tuple(prompt), config, tuple(range(n_samples)))


def submit(number: int, asked: GenerationRequest, **options) -> Submit:
    return Submit(number, asked, call=number, **options)


def steps_until(serving: ServingLoop, number: int, limit: int = 2000):
    for step in range(limit):
        if number in (finished := serving.run([]).finished):
            return step, finished[number]
    raise AssertionError(f"request {number} did not finish")


@pytest.fixture
def serving(weights):
    return ServingLoop(weights, max_rows=ROWS)


def test_a_probe_is_answered_at_once_while_every_row_has_a_long_completion(serving):
    serving.run([submit(0, request(2000, LONG))])
    results = serving.run([submit(1, request(1, 1), is_short=True)])
    assert [len(c.token_ids) for c in results.finished[1]] == [1], "in the step in which it arrived"
    assert serving.n_running == ROWS


def test_short_calls_take_one_extra_row_in_the_order_of_their_arrival(serving):
    serving.run([submit(0, request(2000, LONG))])
    serving.run([submit(number, request(1, 5), is_short=True) for number in (1, 2)])
    assert serving.n_running == ROWS + 1
    assert steps_until(serving, 1)[0] <= 5
    assert steps_until(serving, 2)[0] <= 6


def test_a_small_call_gets_the_next_free_row_although_another_has_thousands_of_samples_waiting(serving, weights):
    serving.run([submit(0, request(2000, 8))])
    serving.run([submit(1, request(2, 6, prompt=(5, 6)))])
    steps, completions = steps_until(serving, 1)
    assert steps <= 8 + 6, "until a row is free, and then as long as it generates"
    assert serving.n_waiting > 1900
    alone = ServingLoop(weights, max_rows=ROWS)
    alone.run([submit(0, request(2, 6, prompt=(5, 6)))])
    assert [c.token_ids for c in completions] == [c.token_ids for c in steps_until(alone, 0)[1]]


def test_calls_that_take_turns_get_the_completions_that_they_get_alone(serving, weights, monkeypatch):
    monkeypatch.setattr(prefilled, "MAX_SPLIT_PROMPTS", 1)  # most prompts are prefilled again
    asked = {number: request(7, 5, prompt=(number + 1,) * (number + 1)) for number in range(4)}
    serving.run([submit(number, one) for number, one in asked.items()])
    found = {}
    while serving.has_work:
        found |= serving.run([]).finished
    for number, one in asked.items():
        alone = ServingLoop(weights, max_rows=ROWS)
        alone.run([submit(0, one)])
        expected = steps_until(alone, 0)[1]
        assert [c.token_ids for c in found[number]] == [c.token_ids for c in expected]
        for mine, other in zip(found[number], expected, strict=True):
            assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-9)


@pytest.mark.parametrize(
    ("asked", "short"),
    [
        ([request(1, 1)], True),
        ([request(1, 61)], True),
        ([request(1, 62)], False),
        ([request(2, 1)], False),
        ([request(1, 1)] * 2, False),
    ],
    ids=["probe", "64 tokens", "65 tokens", "two samples", "two requests"],
)
def test_only_a_call_of_one_sample_and_few_tokens_is_short(weights, asked, short):
    thread = DecodeThread(ServingLoop(weights, max_rows=ROWS), Ranks(), on_failure=lambda error: None)
    numbers = [ticket.number for ticket in thread.submit(asked)]
    commands = [command for command, _ in thread._inbox.get()]
    assert {(command.call, command.is_short) for command in commands} == {(numbers[0], short)}
