"""The driver against a server that has SGLang's recorded contract."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from dataclasses import replace

import pytest
from sglang_server import SglangServer

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.errors import RefusedRequestError, ServerError, UncertainCallError
from archon_core.layout import parse_layout
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.scores import Scores, ScoringRequest, ServedModelInfo
from archon_core.serving.update import BucketNotice, UpdatePlan
from archon_sglang.driver import SglangDriver
from archon_sglang.options import SglangOptions
from archon_sglang.scoring import read_scores

SECONDS = 10.0


@pytest.fixture
def server():
    with SglangServer(token="secret") as started:
        yield started


@pytest.fixture
def driver():
    return SglangDriver(RolloutConfig(), token="secret")


def request(prompt=(3, 4), n=1, **config):
    config = GenerationConfig(n_samples=n, **{"max_new_tokens": 5, **config})
    return GenerationRequest(prompt, config, seeds=tuple(range(7, 7 + n)))


def generate(driver, record, one, id="r"):
    return asyncio.run(driver.generate(record, one, request_id=id, timeout=SECONDS))


def wait_for(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def begin(driver, record, version=5, transport="disk"):
    plan = UpdatePlan(WeightManifest(version, ()), transport, {"folder": "/w/.v", "final": f"/w/v{version}"})
    driver.begin_update(record, plan, timeout=SECONDS)


def in_background(call):
    result = []
    thread = threading.Thread(target=lambda: result.append(call()), daemon=True)
    thread.start()
    return lambda: (thread.join(SECONDS), result[0])[1]


def test_a_server_is_ready_when_it_says_so(server, driver):
    server.is_ready = False
    assert driver.ready(server.address, timeout=SECONDS) is None
    server.is_ready = True
    record = driver.ready(server.address, timeout=SECONDS)
    assert (record.kind, record.tensor, record.version, record.address) == ("sglang", 2, -1, server.address)


def test_no_server_is_not_ready(driver):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert driver.ready(f"127.0.0.1:{closed.getsockname()[1]}", timeout=SECONDS) is None


def test_a_wrong_token_is_an_error_and_not_a_server_that_starts(server):
    other = SglangDriver(RolloutConfig(), token="wrong")
    with pytest.raises(ServerError, match="/ready answered 401"):
        other.ready(server.address, timeout=SECONDS)


@pytest.mark.parametrize("answer", [[], {"detail": "Not Found"}])
def test_answers_of_another_program_are_errors_of_the_server(server, driver, monkeypatch, answer):
    record = driver.ready(server.address, timeout=SECONDS)
    monkeypatch.setattr("archon_sglang.driver.call", lambda *arguments, **options: answer)
    for call in (driver.ready, lambda address, timeout: driver.state(record, timeout=timeout)):
        with pytest.raises(ServerError, match=r"answered .*, without"):
            call(server.address, timeout=SECONDS)


def test_completions_have_ids_logprobs_and_versions(server, driver):
    record = driver.ready(server.address, timeout=SECONDS)
    (one,) = generate(driver, record, request())
    assert one.token_ids == (7, 8, 9, 10, 11)
    assert one.logprobs == tuple(-0.5 - token / 100 for token in one.token_ids)
    assert one.versions == (-1,) * 5
    assert one.stop_reason == "length"


def test_scores_are_the_log_probabilities_of_prompts(server, driver):
    record = driver.ready(server.address, timeout=SECONDS)
    asked = ScoringRequest(((3, 8, 16), (5,), (2, 24)))
    assert asyncio.run(driver.score(record, asked, timeout=SECONDS)) == Scores(((-1.0, -2.0), (), (-3.0,)), -1)
    assert driver.capabilities.scores
    assert not driver.capabilities.score_temperatures
    assert driver.describe_model(record, timeout=SECONDS) == ServedModelInfo("/model", version=-1)
    server.version = "4"
    assert asyncio.run(driver.score(record, asked, timeout=SECONDS)).version == 4
    with pytest.raises(RefusedRequestError, match=r"found temperature 0\.5; SGLang scores at 1 only"):
        asyncio.run(driver.score(record, ScoringRequest(((1, 2),), 0.5), timeout=SECONDS))
    with pytest.raises(ServerError, match="found a malformed answer"):
        read_scores({"meta_info": {}}, (1, 2))
    with pytest.raises(ServerError, match="found 1 tokens, which are not the 2 of the request"):
        read_scores({"meta_info": {"input_token_logprobs": [[None, 1, None]]}}, (1, 2))


def test_a_server_with_frozen_weights_serves_them_whatever_the_options_name():
    options = SglangOptions(model_path="actor", python="python3")
    driver = SglangDriver(RolloutConfig(), options=options)
    place = {"layout": parse_layout("sglang:d1"), "index": 0, "host": "127.0.0.1", "port": 9}
    for frozen, model in ((True, "teacher"), (False, "actor")):
        command = driver.launch("teacher", **place, frozen=frozen).command
        assert command[command.index("--model-path") + 1] == model


def test_each_sample_is_a_request_and_stops_at_the_listed_ids_only(server, driver):
    record = driver.ready(server.address, timeout=SECONDS)
    answers = generate(driver, record, request(n=3, stop_token_ids=[9], temperature=0.7, top_p=0.9, top_k=20))
    assert [answer.token_ids for answer in answers] == [(7, 8, 9)] * 3
    assert {answer.stop_reason for answer in answers} == {"stop"}
    bodies = [body for path, body in server.calls if path == "/generate"]
    assert len({body["rid"] for body in bodies}) == 3
    for body in bodies:
        sampling = body["sampling_params"]
        assert (sampling["temperature"], sampling["top_p"], sampling["top_k"]) == (0.7, 0.9, 20)
        assert sampling["ignore_eos"]
        assert sampling["stop_token_ids"] == [9]
        assert "sampling_seed" not in sampling


def test_seeds_are_sent_to_a_deterministic_server(server):
    config, options = RolloutConfig(), SglangOptions(enable_deterministic_inference=True)
    driver = SglangDriver(config, options=options, token="secret")
    generate(driver, driver.ready(server.address, timeout=SECONDS), request(n=2))
    seeds = [body["sampling_params"]["sampling_seed"] for path, body in server.calls if path == "/generate"]
    assert sorted(seeds) == [7, 8]


def test_greedy_takes_every_token_into_account(server, driver):
    generate(driver, driver.ready(server.address, timeout=SECONDS), request(greedy=True, top_p=0.5, top_k=3))
    sampling = server.calls[-1][1]["sampling_params"]
    assert (sampling["temperature"], sampling["top_p"], sampling["top_k"]) == (0.0, 1.0, -1)


def test_max_tokens_counts_the_prompt(server, driver):
    record = driver.ready(server.address, timeout=SECONDS)
    assert len(generate(driver, record, request(max_tokens=4))[0].token_ids) == 2
    with pytest.raises(ServerError, match="max_tokens: found 2 with a prompt of 2 tokens"):
        generate(driver, record, request(max_tokens=2))


def test_penalties_are_sent_and_stop_texts_refused(server, driver):
    record = driver.ready(server.address, timeout=SECONDS)
    generate(driver, record, request(frequency_penalty=0.5))
    assert server.calls[-1][1]["sampling_params"]["frequency_penalty"] == 0.5
    with pytest.raises(ServerError, match=r"gconfig\.stop: found \['x'\].*use gconfig\.stop_token_ids"):
        generate(driver, record, request(stop=["x"]))


def test_tokens_on_both_sides_of_an_update_carry_their_versions(server, driver):
    record = driver.ready(server.address, timeout=SECONDS)
    answer = in_background(lambda: generate(driver, record, request(max_new_tokens=150)))
    wait_for(lambda: server.running)
    begin(driver, record)
    driver.receive_bucket(record, BucketNotice(5, 0, (), (), 0), timeout=SECONDS)
    driver.commit_update(record, 5, timeout=SECONDS)
    (one,) = answer()
    assert len(one.token_ids) == 150
    assert set(one.versions) == {-1, 5}
    assert one.stop_reason == "length"
    assert driver.state(record, timeout=SECONDS).version == 5
    assert server.model_path == "/w/v5"


def test_a_commit_is_one_critical_section_that_aborts_nothing(server, driver):
    record = driver.ready(server.address, timeout=SECONDS)
    begin(driver, record)
    server.calls.clear()
    driver.commit_update(record, 5, timeout=SECONDS)
    assert server.paths() == ["/pause_generation", "/update_weights_from_disk", "/continue_generation"]
    assert server.calls[0][1] == {"mode": "retract"}
    assert server.calls[1][1]["abort_all_requests"] is False


def test_a_failed_update_leaves_the_server_running_with_the_old_version(server, driver):
    record = driver.ready(server.address, timeout=SECONDS)
    begin(driver, record)
    server.refuses["/update_weights_from_disk"] = "no such folder"
    with pytest.raises(ServerError, match="no such folder"):
        driver.commit_update(record, 5, timeout=SECONDS)
    state = driver.state(record, timeout=SECONDS)
    assert (state.version, state.paused) == (-1, False)
    with pytest.raises(ServerError, match="found None received"):
        driver.commit_update(record, 5, timeout=SECONDS)


def test_weights_of_an_update_without_an_answer_are_labelled_as_broken(server, driver):
    record = driver.ready(server.address, timeout=SECONDS)
    begin(driver, record)
    answered = threading.Event()
    server.do_update_weights_from_disk = lambda body: (answered.wait(SECONDS), (500, None))[1]
    with pytest.raises(UncertainCallError):
        driver.commit_update(record, 5, timeout=1.0)
    answered.set()
    assert server.paths()[-3:] == ["/update_weights_from_disk", "/update_weight_version", "/continue_generation"]
    assert (server.paused, server.aborted) == (False, set())
    with pytest.raises(ServerError, match="may be loaded in part only; restart the server"):
        driver.state(record, timeout=SECONDS)


def test_an_aborted_update_is_not_committed(server, driver):
    record = driver.ready(server.address, timeout=SECONDS)
    begin(driver, record)
    driver.abort_update(record, 4, timeout=SECONDS)
    driver.abort_update(record, 5, timeout=SECONDS)
    with pytest.raises(ServerError, match="found None received"):
        driver.commit_update(record, 5, timeout=SECONDS)
    assert server.version == "default"


def test_an_abort_returns_the_tokens_that_there_are(server, driver):
    record = driver.ready(server.address, timeout=SECONDS)
    first = in_background(lambda: generate(driver, record, request(max_new_tokens=1000, n=2), id="first"))
    other = in_background(lambda: generate(driver, record, request(max_new_tokens=100), id="other"))
    wait_for(lambda: len(server.running) == 3)
    driver.abort(record, ["first"], timeout=SECONDS)
    answers = first()
    assert {answer.stop_reason for answer in answers} == {"abort"}
    assert all(0 < len(answer.token_ids) < 1000 for answer in answers)
    assert other()[0].stop_reason == "length"


def test_the_time_limit_of_an_abort_is_that_of_all_its_requests(server, driver, monkeypatch):
    record = driver.ready(server.address, timeout=SECONDS)

    def hang(*arguments, timeout, **options):
        time.sleep(timeout)
        return 200, b""

    monkeypatch.setattr("archon_sglang.driver.exchange", hang)
    with pytest.raises(UncertainCallError, match=r"was not over after 0\.05 s"):
        driver.abort(record, [f"r{n}" for n in range(1000)], timeout=0.05)


def test_all_requests_can_be_aborted(server, driver):
    record = driver.ready(server.address, timeout=SECONDS)
    answer = in_background(lambda: generate(driver, record, request(max_new_tokens=1000)))
    wait_for(lambda: server.running)
    driver.abort(record, None, timeout=SECONDS)
    assert answer()[0].stop_reason == "abort"


def test_a_scheduler_that_answers_generates_unless_it_is_paused(server, driver):
    record = driver.ready(server.address, timeout=SECONDS)
    assert driver.is_generating(record, timeout=SECONDS)
    driver.pause(record, "keep", timeout=SECONDS)
    assert not driver.is_generating(record, timeout=SECONDS)
    assert not driver.is_generating(replace(record, address="127.0.0.1:1"), timeout=SECONDS)
    assert driver.capabilities.max_sequences is None
    options = SglangOptions(max_running_requests=64)
    assert SglangDriver(RolloutConfig(), options=options).capabilities.max_sequences == 62


def test_a_paused_server_is_seen_and_resumed(server, driver):
    record = driver.ready(server.address, timeout=SECONDS)
    driver.pause(record, "abort", timeout=SECONDS)
    assert driver.state(record, timeout=SECONDS).paused
    driver.resume(record, timeout=SECONDS)
    assert not driver.state(record, timeout=SECONDS).paused
    with pytest.raises(ServerError, match="'wait'; SGLang allows keep, abort"):
        driver.pause(record, "wait", timeout=SECONDS)


def test_updates_need_the_right_incarnation_and_transport(server, driver):
    record = driver.ready(server.address, timeout=SECONDS)
    with pytest.raises(ServerError, match=r"transport 'shm'.*disk"):
        begin(driver, record, transport="shm")
    with pytest.raises(ServerError, match="another incarnation"):
        begin(driver, replace(record, incarnation="other"))
    server.name = "restarted"
    assert driver.state(record, timeout=SECONDS).incarnation != record.incarnation


def test_answers_without_versions_or_of_other_publishers_are_errors(server, driver):
    record = driver.ready(server.address, timeout=SECONDS)
    server.spans = False
    with pytest.raises(ServerError, match="weight_versions"):
        generate(driver, record, request())
    server.version = "checkpoint-7"
    with pytest.raises(ServerError, match="'checkpoint-7'"):
        driver.state(record, timeout=SECONDS)


def test_routed_experts_get_the_shape_of_the_model(server, tmp_path):
    driver = SglangDriver(RolloutConfig(return_routed_experts=True), token="secret")
    record = driver.ready(server.address, timeout=SECONDS)
    server.model_path = str(tmp_path)
    with pytest.raises(ServerError, match=r"config\.json"):
        generate(driver, record, request())
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 2, "num_experts_per_tok": 2}))
    (one,) = generate(driver, record, request())
    assert one.routed_experts.shape == (2 + 5 - 1, 2, 2)
    assert one.routed_experts[0].tolist() == [[0, 1], [2, 3]]
