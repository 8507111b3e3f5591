"""The server behind HTTP, with a model of two layers: answers, errors, control and disconnects."""

import asyncio
import gc
import json
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.errors import ServerError, UncertainCallError
from archon_core.serving.manifest import TensorEntry, WeightManifest
from archon_core.serving.update import UpdatePlan
from archon_rollout.local_engine import LocalEngine
from archon_rollout.served.driver import ServedDriver
from archon_rollout.server.rank_updates import RankUpdates
from archon_rollout.server.weight_copies import ServedWeights
from archon_rollout.server.wire import read_completion, request_data

PROMPTS = [(3,), (1, 2, 3, 4, 5, 6, 7), (9, 8), (4, 4, 4, 4)]
LONG = {"requests": [{"prompt_ids": [1], "seeds": [1], "max_new_tokens": 60, "greedy": True}]}


def requests(**options):
    return [
        GenerationRequest(p, GenerationConfig(n_samples=2, **{"max_new_tokens": 9, **options}), (i, i + 100))
        for i, p in enumerate(PROMPTS)
    ]


def local(server, asked):
    return LocalEngine(RolloutConfig(), trainer=server.weights.active).generate(asked)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def record_of(server):
    driver = ServedDriver(RolloutConfig(), token="secret")
    record = driver.ready(f"127.0.0.1:{server.client.port}", timeout=10)
    assert record is not None
    return driver, record


def test_completions_equal_the_local_engines(server):
    asked = requests(temperature=0.8, top_p=0.9, stop_token_ids=[3])
    status, answer = server.client.post("/generate", {"requests": [request_data(r) for r in asked]})
    assert status == 200
    got = [[read_completion(one) for one in samples] for samples in answer["results"]]
    for found, expected in zip(got, local(server, asked), strict=True):
        for one, other in zip(found, expected, strict=True):
            assert (one.token_ids, one.versions, one.stop_reason) == (
                other.token_ids,
                other.versions,
                other.stop_reason,
            )
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-9)


def test_many_callers_at_once_get_what_each_would_get_alone(server):
    asked = requests() * 3
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda r: server.client.post("/generate", {"requests": [request_data(r)]}), asked))
    for (status, answer), [expected] in zip(answers, [local(server, [r]) for r in asked], strict=True):
        assert status == 200
        assert [tuple(one["token_ids"]) for one in answer["results"][0]] == [one.token_ids for one in expected]


def test_requests_without_the_token_are_refused_except_for_health(server, client_of):
    for other in (client_of(server.client.port, ""), client_of(server.client.port, "secre")):
        for path in ("/state", "/v1/models"):
            status, answer = other.get(path)
            assert status == 401
            assert "Authorization: Bearer TOKEN" in answer["error"]["message"]
        assert other.post("/generate", LONG)[0] == 401
        assert other.get("/health") == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/generate", "{not json", "request body: found no JSON"),
        ("/generate", {"requests": [{"prompt_ids": [1] * 65, "seeds": [1]}]}, "found a prompt of 65 tokens"),
        ("/generate", {"requests": [{"prompt_ids": [99], "seeds": [1]}]}, "prompt token id 99, allowed are 0 to 22"),
        ("/generate", {"requests": [{"prompt_ids": [1], "seeds": [1], "top_p": 2}]}, "top_p: found 2"),
        (
            "/generate",
            {"requests": [{"prompt_ids": [1], "seeds": [1] * 4097}]},
            "seeds: found 4097; allowed are at most",
        ),
        ("/generate", {"prompts": []}, "unknown field 'prompts'"),
        ("/v1/completions", {"prompt": "text"}, "no tokenizer; send token ids"),
        ("/v1/completions", {"prompt": [1], "max_token": 1}, "unknown field 'max_token'"),
        ("/pause", {"mode": "later"}, "mode: found 'later'; allowed are keep, wait, abort"),
        ("/pause", {"why": 1}, "unknown field 'why'"),
        ("/update/commit", {}, "no field 'version'"),
    ],
)
def test_bad_requests_are_answered_with_what_is_wrong(server, path, body, message):
    status, answer = server.client.post(path, body)
    assert status == 400
    assert message in answer["error"]["message"]


def test_unknown_paths_and_methods_are_answered_in_json(server):
    assert server.client.post("/generat", {})[0] == 404
    assert server.client.get("/generate")[0] == 405


@pytest.mark.parametrize(
    ("path", "body"),
    [("/generate", LONG), ("/v1/completions", {"prompt": [1], "max_tokens": 60, "stop": "x"})],
    ids=["generate", "stop texts"],
)
def test_a_caller_that_leaves_frees_its_rows(server, caplog, path, body):
    server.decode.pause("keep").result(10)
    connection = server.client.open("POST", path, body)
    wait_until(lambda: server.decode.n_requests == 1)
    connection.close()
    wait_until(lambda: server.decode.n_requests == 0)
    server.client.get("/health")  # after the server's loop has seen the end
    gc.collect()
    assert "never retrieved" not in caplog.text
    server.decode.resume().result(10)


def test_an_aborted_request_is_answered_with_its_tokens(server):
    asked = {**LONG, "request_id": "mine"}
    with ThreadPoolExecutor(1) as pool:
        server.decode.pause("keep").result(10)
        answer = pool.submit(server.client.post, "/generate", asked)
        wait_until(lambda: server.decode.n_requests == 1)
        assert server.client.post("/abort", {"request_ids": ["other"]})[0] == 200
        assert server.decode.n_requests == 1
        assert server.client.post("/abort", {"request_ids": ["mine"]})[0] == 200
        [[one]] = answer.result(10)[1]["results"]
    assert one["stop_reason"] == "abort"


def test_requests_go_on_with_new_weights_and_say_so(server, tiny):
    asked = GenerationRequest((1, 2), GenerationConfig(max_new_tokens=60, temperature=0.9), (3,))
    driver, record = record_of(server)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(driver.generate_all, record, [asked], timeout=30)
        wait_until(lambda: server.decode._serving.n_running)
        driver.commit_update(record, 6, timeout=10)
        driver.commit_update(record, 7, timeout=10)
        [[completion]] = answer.result(30)
    assert driver.state(record, timeout=10).version == 7
    ids = asked.prompt_ids + completion.token_ids
    logits = {v: tiny.full_logits(trainer.module, ids) for v, trainer in server.weights.trainers.items()}
    for place, version in enumerate(completion.versions):
        expected = (logits[version][place + 1] / 0.9).log_softmax(-1)[completion.token_ids[place]]
        assert completion.logprobs[place] == pytest.approx(float(expected), abs=1e-9)


def test_the_driver_pauses_resumes_and_sees_it_in_the_state(server):
    driver, record = record_of(server)
    assert record.kind == "served"
    driver.pause(record, "keep", timeout=10)
    assert driver.state(record, timeout=10).paused
    asked = requests()[0]
    with pytest.raises(UncertainCallError, match="got no answer"):
        driver.generate_all(record, [asked], timeout=0.3)
    with pytest.raises(UncertainCallError):
        asyncio.run(driver.generate(record, asked, request_id="a", timeout=0.3))
    wait_until(lambda: server.decode.n_requests == 0)
    driver.resume(record, timeout=10)
    assert not driver.state(record, timeout=10).paused
    found = asyncio.run(driver.generate(record, asked, request_id="b", timeout=20))
    assert [one.token_ids for one in found] == [one.token_ids for one in local(server, [asked])[0]]


def test_calls_for_another_incarnation_and_calls_that_come_late_change_nothing(server):
    client = server.client
    status, answer = client.post("/pause", {"incarnation": "an earlier start"})
    assert status == 409
    assert "this server is this-start" in answer["error"]["message"]
    assert client.post("/resume", {"caller": "trainer", "sequence": 5})[0] == 200
    status, answer = client.post("/pause", {"caller": "trainer", "sequence": 4})
    assert status == 409
    assert "after its call 5" in answer["error"]["message"]
    assert client.post("/pause", {"caller": "another", "sequence": 4})[0] == 200
    assert client.get("/state")[1]["paused"] is True


def test_an_update_of_another_model_is_a_conflict_and_no_failure(server, monkeypatch):
    copies = SimpleNamespace(shapes={"a": (2,)}, active=None)
    weights = ServedWeights(copies, version=5, incarnation="this-start")
    monkeypatch.setattr(server.service, "_receiving", RankUpdates(weights))
    plan = UpdatePlan(WeightManifest(6, (TensorEntry("a", "float32", (3,)),)), "shm")
    status, answer = server.client.post("/update/begin", {"plan": plan.as_data()})
    assert status == 409
    assert "this server's model has (2,)" in answer["error"]["message"]


def test_another_run_may_publish_an_older_version_than_the_one_in_use(monkeypatch):
    receiver = SimpleNamespace(begin=lambda plan: None, end=lambda: None)
    monkeypatch.setattr("archon_rollout.server.weight_copies._receiver_of", lambda transport: receiver)
    weights = ServedWeights(SimpleNamespace(shapes={}, active=None), version=5, incarnation="this-start")
    weights.begin(UpdatePlan(WeightManifest(3, ()), "disk", publisher="another run"))
    assert weights.updates.updating == 3


def test_a_server_without_weights_refuses_requests_until_it_has_some(weights, start_server):
    weights.is_usable = False
    with start_server(weights) as server:
        status, answer = server.client.post("/generate", LONG)
        assert status == 503
        assert "no weights yet" in answer["error"]["message"]
        weights.is_usable = True
        assert server.client.post("/generate", LONG)[0] == 200


def test_a_server_that_is_not_there_is_an_error_and_not_uncertain(server):
    driver, record = record_of(server)
    assert driver.ready("127.0.0.1:1", timeout=1) is None
    gone = type(record)("127.0.0.1:1", "a", "served")
    with pytest.raises(ServerError, match="cannot connect") as error:
        driver.state(gone, timeout=1)
    assert not isinstance(error.value, UncertainCallError)
    with pytest.raises(ServerError, match="cannot connect"):
        asyncio.run(driver.generate(gone, requests()[0], request_id="a", timeout=1))
    wrong = ServedDriver(RolloutConfig(), token="wrong")
    with pytest.raises(ServerError, match="answered 401"):
        wrong.ready(record.address, timeout=5)


def events_of(content: str) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in content.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_events_make_the_same_completion_as_a_whole_answer(server):
    body = {"prompt": [1, 2], "max_tokens": 7, "n": 2, "seed": 3, "logprobs": 0}
    status, whole = server.client.post("/v1/completions", body)
    assert status == 200
    assert whole["usage"] == {"prompt_tokens": 2, "completion_tokens": 14, "total_tokens": 16}
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    events = events_of(server.client.text("POST", "/v1/completions", streamed)[1])
    assert events.pop()["usage"] == whole["usage"]
    for index, choice in enumerate(whole["choices"]):
        parts = [one for event in events for one in event["choices"] if one["index"] == index]
        assert len(parts) > 3, "tokens arrive one by one"
        assert [token for one in parts for token in one["token_ids"]] == choice["token_ids"]
        logprobs = [p for one in parts for p in one["logprobs"]["token_logprobs"]]
        assert logprobs == pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-9)
        assert [one["finish_reason"] for one in parts] == [None] * (len(parts) - 1) + ["length"]
        assert choice["weight_versions"] == [{"version": 5, "start": 0, "end": 7}]


def test_a_caller_that_leaves_in_the_middle_of_events_frees_its_rows(server):
    body = {"prompt": [1], "max_tokens": 60, "stream": True}
    connection = server.client.open("POST", "/v1/completions", body)
    response = connection.getresponse()
    assert response.readline().startswith(b"data: ")
    server.decode.pause("keep").result(10)
    response.close()
    connection.close()
    wait_until(lambda: server.decode.n_requests == 0)
