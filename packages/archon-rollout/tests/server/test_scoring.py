"""Scores of given tokens: their values, their turn beside generation, and requests that are invalid or abandoned."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from archon_core.contracts.rollout import RolloutConfig
from archon_core.errors import RefusedRequestError, ServerError
from archon_core.serving.scores import Scores, ScoringRequest, ServedModelInfo
from archon_rollout.served.driver import ServedDriver
from archon_rollout.server.wire import read_scores

SEQUENCES = ((3, 1, 4, 1, 5), (9,), (2, 6), (5, 3, 5, 8, 9, 7, 9))
LONG = {"requests": [{"prompt_ids": [1], "seeds": [1], "max_new_tokens": 60, "greedy": True}]}


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def expected(tiny, module, temperature):
    found = []
    for ids in SEQUENCES:
        logprobs = (tiny.full_logits(module, ids) / temperature).log_softmax(-1)
        found.append([float(logprobs[place, token]) for place, token in enumerate(ids[1:])])
    return found


def score(server, request):
    driver = ServedDriver(RolloutConfig(), token="secret")
    record = driver.ready(f"127.0.0.1:{server.client.port}", timeout=10)
    return asyncio.run(driver.score(record, request, timeout=60))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_are_the_models_log_probabilities_of_the_weights_in_use(server, tiny, temperature):
    request = ScoringRequest(SEQUENCES, temperature)
    for version in (5, 6):
        scores = score(server, request)
        assert scores.version == version
        for row, values in zip(scores.logprobs, expected(tiny, server.weights.active.module, temperature), strict=True):
            assert row == pytest.approx(values, rel=0, abs=1e-12)
        server.decode.commit(6).result(10)


def test_scoring_and_generation_take_turns_and_change_nothing_of_each_other(server):
    _, alone = server.client.post("/generate", LONG)
    request = {"sequences": [list(ids) for ids in SEQUENCES]}
    _, [*scores] = server.client.post("/score", request)
    with ThreadPoolExecutor(8) as pool:
        generating = pool.submit(server.client.post, "/generate", LONG)
        scored = [answer for _, answer in pool.map(lambda _: server.client.post("/score", request), range(7))]
    assert generating.result()[1] == alone
    assert all(answer == scored[0] for answer in scored)
    assert set(scores) == {"incarnation", "logprobs", "version"}


def test_a_paused_server_scores_nothing_until_it_resumes(server):
    server.decode.pause("keep").result(10)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(score, server, ScoringRequest(SEQUENCES))
        wait_until(lambda: server.service.state.running == 1)
        assert not waiting.done()
        server.decode.resume().result(10)
        assert len(waiting.result(20).logprobs) == len(SEQUENCES)
        server.decode.pause("keep").result(10)
        waiting = pool.submit(score, server, ScoringRequest(SEQUENCES))
        wait_until(lambda: server.service.state.running == 1)
        server.decode.pause("abort").result(10)
        with pytest.raises(ServerError, match="the request for scores was aborted; send it again"):
            waiting.result(20)


def test_a_caller_that_leaves_takes_its_request_along(server):
    server.decode.pause("keep").result(10)
    connection = server.client.open("POST", "/score", {"sequences": [[1, 2]]})
    wait_until(lambda: server.decode.n_requests == 1)
    connection.close()
    wait_until(lambda: server.decode.n_requests == 0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "score: found no field 'sequences'"),
        ({"sequences": []}, "found an empty list of sequences; allowed is at least 1"),
        ({"sequences": [[1, "2"]]}, "sequences: found [[1, '2']]; allowed is a list of a list of an integer"),
        ({"sequences": [[1], []]}, "sequence 1: found 0 tokens; allowed is at least 1"),
        ({"sequences": [[1, 23]]}, "sequence 0: found token id 23; allowed are 0 to 22"),
        ({"sequences": [[1, -1]]}, "sequence 0: found token id -1; allowed are 0 to 22"),
        ({"sequences": [[1] * 65]}, "sequence 0: found 65 tokens; allowed are 64 (max_position_embeddings)"),
        ({"sequences": [[1]], "temperature": 0}, "temperature: found 0.0; allowed is a number above 0"),
        ({"sequences": [[1]], "temprature": 1}, "unknown field 'temprature'; did you mean 'temperature'"),
    ],
)
def test_invalid_requests_are_answered_with_what_is_wrong(server, body, message):
    status, answer = server.client.post("/score", body)
    assert status == 400
    assert message in answer["error"]["message"]


def test_an_invalid_request_is_refused_not_repeated(server):
    with pytest.raises(RefusedRequestError, match=r"/score answered 400: score: sequence 0: found token id 99"):
        score(server, ScoringRequest(((99,),)))


def test_weights_that_give_no_numbers_are_an_error(server):
    with torch.no_grad():
        server.weights.active.module.head.weight.fill_(float("nan"))
    with pytest.raises(ServerError, match="log-probabilities that are not finite; check the server's weights"):
        score(server, ScoringRequest(SEQUENCES))


def test_a_server_describes_its_model(server):
    assert server.client.get("/model") == (200, ServedModelInfo("").as_data())


@pytest.mark.parametrize("data", [{}, {"logprobs": [[None]], "version": 1}, {"logprobs": 1, "version": 1}])
def test_malformed_answers_are_errors_of_the_server(data):
    with pytest.raises(ServerError, match="scores: found a malformed answer"):
        read_scores(data)


def test_answers_must_fit_the_request():
    with pytest.raises(ServerError, match=r"found scores of 1 tokens per sequence; the request has 4, 0, 1, 6 after"):
        Scores(((-1.0,),), 0).check(ScoringRequest(SEQUENCES), "host:1")
    with pytest.raises(ServerError, match=r"found the log-probability 0\.5"):
        Scores(((0.5,),), 0).check(ScoringRequest(((1, 2),)), "host:1")
