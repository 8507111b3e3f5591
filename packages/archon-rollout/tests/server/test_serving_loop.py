"""The server's logic without threads: requests, pauses, aborts, and the switch of weights."""

import pytest
import torch

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest
from archon_rollout.server.commands import Abort, Commit, Pause, Resume, Submit
from archon_rollout.server.serving_loop import ServingLoop


def submit(number, prompt=(1, 2, 3), seeds=(1,), **options):
    config = GenerationConfig(n_samples=len(seeds), **{"max_new_tokens": 6, **options})
    return Submit(number, GenerationRequest(tuple(prompt), config, tuple(seeds)))


def run_until(serving, number, limit=50):
    for _ in range(limit):
        results = serving.run([])
        if number in results.finished:
            return results.finished[number]
    raise AssertionError(f"request {number} did not finish")


@pytest.fixture
def serving(weights):
    return ServingLoop(weights, max_rows=4)


def test_a_kept_pause_stops_between_two_tokens_and_goes_on_as_if_nothing_had_happened(serving):
    serving.run([submit(0)])
    expected = run_until(serving, 0)
    serving.run([submit(1)])
    serving.run([Pause("keep")])
    assert serving.is_paused
    assert not serving.has_work
    assert serving.run([]).finished == {}
    serving.run([submit(2, seeds=(8,))])
    assert serving.n_waiting == 1, "requests wait while the server is paused"
    serving.run([Resume()])
    assert [c.token_ids for c in run_until(serving, 1)] == [c.token_ids for c in expected]
    assert run_until(serving, 2)


def test_a_waiting_pause_finishes_what_runs_and_admits_nothing(serving):
    serving.run([submit(0)])
    results = serving.run([Pause("wait"), submit(1)])
    steps = 0
    while not serving.is_paused:
        results = serving.run([])
        steps += 1
    assert [c.stop_reason for c in results.finished[0]] == ["length"]
    assert steps > 1
    assert not serving.has_work
    assert serving.n_requests == 1
    serving.run([Resume()])
    assert run_until(serving, 1)


def test_an_aborting_pause_returns_what_there_is(serving):
    serving.run([submit(0, seeds=(1, 2)), submit(1, seeds=(3, 4, 5))])
    results = serving.run([Pause("abort")])
    assert {number: [len(c.token_ids) for c in cs] for number, cs in results.finished.items()} == {
        0: [2, 2],
        1: [2, 2, 0],
    }
    assert {c.stop_reason for cs in results.finished.values() for c in cs} == {"abort"}
    assert serving.is_paused
    assert serving.n_requests == 0


def test_single_requests_are_aborted_while_others_run_and_unknown_numbers_are_nothing(serving):
    serving.run([submit(0), submit(1)])
    results = serving.run([Abort(frozenset({0, 77}))])
    assert [c.stop_reason for c in results.finished[0]] == ["abort"]
    assert run_until(serving, 1)[0].stop_reason == "length"


def test_a_commit_labels_the_tokens_that_follow_also_in_a_pause(serving, weights):
    serving.run([submit(0, max_new_tokens=9)])
    serving.run([Pause("keep")])
    serving.run([Commit(6)])
    assert weights.version == 6
    serving.run([Resume(), Commit(6)])
    [completion] = run_until(serving, 0)
    assert completion.versions == (5,) * 2 + (6,) * 7


def test_a_request_of_no_tokens_is_answered_at_once(serving):
    results = serving.run([submit(0, seeds=(1, 2), max_new_tokens=0)])
    assert [(c.token_ids, c.stop_reason) for c in results.finished[0]] == [((), "length")] * 2


def test_broken_weights_fail_the_requests_and_new_ones_mend_the_server(serving, weights):
    serving.run([submit(0)])
    with torch.no_grad():
        weights.active.module.head.weight[0] = torch.nan
    results = serving.run([])
    assert "NaN or infinity" in str(results.failed[0])
    assert serving.n_requests == 0
    serving.run([Commit(6), submit(1)])
    assert run_until(serving, 1)[0].versions == (6,) * 6


def test_routed_experts_of_a_model_without_experts_are_an_error_of_that_request(serving):
    asked = submit(0)
    serving.run([Submit(0, asked.request, records_experts=True), submit(1)])
    results = serving.run([])
    while 0 not in results.failed:
        results = serving.run([])
    assert "the model has no experts" in str(results.failed[0])
    assert 1 in results.finished or run_until(serving, 1)
