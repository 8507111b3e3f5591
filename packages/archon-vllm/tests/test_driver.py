"""The driver and the in-server part against a server that has vLLM's recorded contract."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from publishing import manifest_of, prepare, publish
from vllm_server import VllmServer, logprob_of

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.errors import ConfigError, RefusedRequestError, ServerError, UncertainCallError
from archon_core.layout import parse_layout
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.scores import Scores, ScoringRequest, ServedModelInfo
from archon_core.serving.update import UpdatePlan
from archon_vllm.driver import VllmDriver
from archon_vllm.options import VllmOptions
from archon_vllm.scoring import read_scores

SECONDS = 20.0


def weights(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed.weight": (40, 500), "norm.weight": (7,), "head.weight": (500, 40)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def server():
    with VllmServer(weights(0), token="secret") as started:
        yield started


def make_driver(transport="shm", options=None):
    config = RolloutConfig(weight_transport=transport)
    return VllmDriver(config, options=options, token="secret")


@pytest.fixture
def driver():
    return make_driver()


@pytest.fixture
def record(server, driver):
    return driver.ready(server.address, timeout=SECONDS)


def request(prompt=(3, 4), n=1, **config):
    config = GenerationConfig(n_samples=n, **{"max_new_tokens": 5, **config})
    return GenerationRequest(prompt, config, seeds=tuple(range(7, 7 + n)))


def generate(driver, record, one, id="r"):
    return asyncio.run(driver.generate(record, one, request_id=id, timeout=SECONDS))


def in_background(call):
    result = []
    thread = threading.Thread(target=lambda: result.append(call()), daemon=True)
    thread.start()
    return lambda: (thread.join(SECONDS), result[0])[1]


def wait_for(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def assert_serves(driver, record, tensors, version):
    """The server generates with these weights under this version, and is not paused."""
    (one,) = generate(driver, record, request())
    assert set(one.versions) == {version}
    assert one.logprobs == pytest.approx([logprob_of(tensors)] * 5)
    assert not driver.state(record, timeout=SECONDS).paused


def test_a_record_has_the_identity_of_the_start(record):
    assert (record.kind, record.tensor, record.version) == ("vllm", 1, -1)
    assert len(record.incarnation) == 32


@pytest.mark.parametrize("answer", [[], {"detail": "Not Found"}])
def test_answers_of_another_program_are_errors_of_the_server(driver, record, monkeypatch, answer):
    monkeypatch.setattr("archon_vllm.driver.call", lambda *arguments, **options: answer)
    for call in (driver.ready, lambda address, timeout: driver.state(record, timeout=timeout)):
        with pytest.raises(ServerError, match=r"answered .*, without"):
            call(record.address, timeout=SECONDS)


def test_completions_have_ids_logprobs_and_versions(server, driver, record):
    answers = generate(driver, record, request(n=3, stop_token_ids=[9], min_new_tokens=1, temperature=0.5))
    assert [answer.token_ids for answer in answers] == [(7, 8, 9)] * 3
    assert {answer.stop_reason for answer in answers} == {"stop"}
    assert answers[0].logprobs == pytest.approx([logprob_of(weights(0))] * 3)
    assert answers[0].versions == (-1,) * 3
    bodies = [body for target, body in server.calls if target == "/inference/v1/generate"]
    assert sorted(body["sampling_params"]["seed"] for body in bodies) == [7, 8, 9]
    assert bodies[0]["sampling_params"]["ignore_eos"]


def test_scores_are_the_log_probabilities_of_prompts(server, record):
    driver = make_driver("disk")  # as for a teacher: nothing of Archon in the server
    record = driver.ready(server.address, timeout=SECONDS)
    asked = ScoringRequest(((3, 8, 16), (5,), (2, 24)))
    assert asyncio.run(driver.score(record, asked, timeout=SECONDS)) == Scores(((-1.0, -2.0), (), (-3.0,)), -1)
    assert driver.capabilities.scores
    assert not driver.capabilities.score_temperatures
    assert driver.describe_model(record, timeout=SECONDS) == ServedModelInfo("/models/teacher", version=-1)
    server.version = "4"
    assert asyncio.run(driver.score(record, asked, timeout=SECONDS)).version == 4
    with pytest.raises(RefusedRequestError, match=r"found temperature 0\.5; vLLM scores at 1 only"):
        asyncio.run(driver.score(record, ScoringRequest(((1, 2),), 0.5), timeout=SECONDS))
    for answer in ({}, {"choices": [{"weight_versions": []}]}, {"choices": [{"weight_versions": [{"version": "4"}]}]}):
        with pytest.raises(ServerError, match="found a malformed answer"):
            read_scores({"prompt_logprobs": [None], **answer}, (1, 2))


def test_a_server_with_frozen_weights_serves_them_whatever_the_options_name(tmp_path):
    config = RolloutConfig(weight_transport="disk")
    driver = VllmDriver(config, options=VllmOptions(model="actor", python="python3"))
    place = {"layout": parse_layout("vllm:d1"), "index": 0, "host": "127.0.0.1", "port": 9}
    command = driver.launch("teacher", **place, dtype="float32", frozen=True).command
    assert command[command.index("serve") + 1] == "teacher"
    assert not {"--load-format", "--weight-transfer-config", "--worker-extension-cls"} & set(command)
    command = driver.launch("teacher", **place).command
    assert command[command.index("serve") + 1] == "actor"


EXPERT = {"model.layers.0.mlp.experts.3.up_proj.weight": torch.zeros(4, 4)}


@pytest.mark.parametrize("transport", ["shm", "disk"])
def test_weights_of_experts_are_refused_unless_the_user_allows_them(server, transport):
    plan = UpdatePlan(manifest_of({**weights(1), **EXPERT}, 1), transport, {"final": "/v1"})
    driver = make_driver(transport)
    record = driver.ready(server.address, timeout=SECONDS)
    with pytest.raises(ServerError, match=r"experts\.3\.up_proj\.weight; vLLM 0\.32 loads experts wrongly.*use"):
        driver.begin_update(record, plan, timeout=SECONDS)
    assert server.targets()[-1] not in ("/start_weight_update", "/init_weight_transfer_engine")
    allowed = make_driver("disk", options=VllmOptions(allow_experts=True))
    record = allowed.ready(server.address, timeout=SECONDS)
    allowed.begin_update(record, replace(plan, transport="disk"), timeout=SECONDS)


@pytest.mark.parametrize(
    ("config", "is_mixture"),
    [
        ({"num_experts": 8}, True),
        ({"text_config": {"num_local_experts": 4}}, True),
        ({"n_routed_experts": None, "num_experts": 0}, False),
        ({"hidden_size": 8}, False),
    ],
)
def test_servers_of_mixtures_are_started_for_frozen_weights_only(tmp_path, config, is_mixture):
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    place = {"layout": parse_layout("vllm:d1"), "index": 0, "host": "127.0.0.1", "port": 9}
    make_driver().launch(str(tmp_path), **place, frozen=True)
    make_driver(options=VllmOptions(allow_experts=True)).launch(str(tmp_path), **place)
    refused = pytest.raises(ConfigError, match=r"found vllm with a mixture of experts.*set vllm\.allow_experts=true")
    with refused if is_mixture else nullcontext():
        make_driver().launch(str(tmp_path), **place)


def test_penalties_are_sent_and_stop_texts_refused(server, driver, record):
    generate(driver, record, request(frequency_penalty=0.5))
    assert server.calls[-1][1]["sampling_params"]["frequency_penalty"] == 0.5
    with pytest.raises(ServerError, match=r"gconfig\.stop: found \['x'\].*use gconfig\.stop_token_ids"):
        generate(driver, record, request(stop=["x"]))


def test_cut_distributions_are_refused(driver, record):
    with pytest.raises(ServerError, match=r"top_p 0\.9 and top_k 0; allowed with vLLM are 1 and 0"):
        generate(driver, record, request(top_p=0.9))
    assert generate(driver, record, request(top_p=0.9, greedy=True))[0].stop_reason == "length"
    with pytest.raises(ServerError, match="max_tokens: found 2"):
        generate(driver, record, request(max_tokens=2))


@pytest.mark.parametrize("transport", ["shm", "distributed"])
def test_published_weights_are_in_use_after_the_commit_only(server, transport):
    driver = make_driver(transport)
    record = driver.ready(server.address, timeout=SECONDS)
    prepare(driver, record, weights(1), 5, transport=transport)
    state = driver.state(record, timeout=SECONDS)
    assert (state.version, state.prepared, state.updating) == (-1, 5, 5)
    assert_serves(driver, record, weights(0), -1)
    driver.commit_update(record, 5, timeout=SECONDS)
    assert_serves(driver, record, weights(1), 5)
    publish(driver, record, weights(2), 6, transport=transport)
    assert_serves(driver, record, weights(2), 6)


def test_a_running_request_goes_on_with_the_new_weights(server, driver, record):
    answer = in_background(lambda: generate(driver, record, request(max_new_tokens=400)))
    wait_for(lambda: server.running)
    publish(driver, record, weights(1), 5)
    (one,) = answer()
    assert one.stop_reason == "length"
    assert list(dict.fromkeys(one.versions)) == [-1, 5]
    expected = {-1: logprob_of(weights(0)), 5: logprob_of(weights(1))}
    assert one.logprobs == pytest.approx([expected[version] for version in one.versions])


def test_a_commit_is_one_critical_section(server, driver, record):
    prepare(driver, record, weights(1), 5)
    server.calls.clear()
    driver.commit_update(record, 5, timeout=SECONDS)
    assert server.targets() == [
        "/pause?mode=keep",
        "/reset_prefix_cache?reset_running_requests=true",
        "/update_weights",
        "/finish_weight_update",
        "/resume",
    ]


def test_a_server_that_keeps_its_cache_keeps_its_weights(server, driver, record):
    server.resets = False
    with pytest.raises(ServerError, match="KV cache of the old weights"):
        publish(driver, record, weights(1), 5)
    assert_serves(driver, record, weights(0), -1)


def test_a_flipped_bit_is_refused_and_the_next_update_works(driver, record):
    def flip(content):
        content[10] ^= 1

    with pytest.raises(ServerError, match="other values"):
        prepare(driver, record, weights(1), 5, spoil=flip)
    assert_serves(driver, record, weights(0), -1)
    with pytest.raises(ServerError):
        driver.commit_update(record, 5, timeout=SECONDS)
    assert_serves(driver, record, weights(0), -1)
    publish(driver, record, weights(2), 6)
    assert_serves(driver, record, weights(2), 6)


def test_an_aborted_update_is_never_committed(driver, record):
    prepare(driver, record, weights(1), 5)
    driver.abort_update(record, 4, timeout=SECONDS)
    driver.abort_update(record, 5, timeout=SECONDS)
    with pytest.raises(ServerError):
        driver.commit_update(record, 5, timeout=SECONDS)
    assert_serves(driver, record, weights(0), -1)


def test_a_new_update_replaces_one_whose_trainer_died(driver, record):
    prepare(driver, record, weights(1), 5)
    publish(make_driver(), record, weights(2), 6)
    assert_serves(driver, record, weights(2), 6)


def test_a_late_finish_does_not_label_old_weights(server, driver, record):
    prepare(driver, record, weights(1), 6)
    with pytest.raises(ServerError, match="version 6 is still being received"):
        driver._post(server.address, "/finish_weight_update", SECONDS, {"weight_version": "5"})
    assert driver.state(record, timeout=SECONDS).version == -1


def test_a_model_that_cannot_load_returns_to_the_previous_weights(server, driver, record):
    prepare(driver, record, weights(1), 5)
    server.worker.fails = 1
    with pytest.raises(ServerError, match="no previous ones to return to: restart the server"):
        driver.commit_update(record, 5, timeout=SECONDS)
    assert not server.paused
    with pytest.raises(ServerError, match="may be loaded in part only; restart the server"):
        generate(driver, record, request())
    publish(driver, record, weights(1), 6)
    prepare(driver, record, weights(2), 7)
    server.worker.fails = 1
    with pytest.raises(ServerError, match="it has the previous ones again"):
        driver.commit_update(record, 7, timeout=SECONDS)
    assert_serves(driver, record, weights(1), 6)


def test_a_commit_without_an_answer_that_was_executed_counts(server, driver, record):
    prepare(driver, record, weights(1), 5)
    server.late["/update_weights"] = 1.0
    driver.commit_update(record, 5, timeout=0.8)
    assert_serves(driver, record, weights(1), 5)


@pytest.mark.parametrize("earlier", [None, 5], ids=["no weights", "another trainer's weights of the same version"])
def test_a_commit_that_the_workers_have_not_executed_is_refused_later(server, driver, record, monkeypatch, earlier):
    if earlier:
        publish(make_driver(), record, weights(3), earlier)
    prepare(driver, record, weights(1), 5)
    act = driver._act

    def lost(address, action, data, timeout):
        raise UncertainCallError("no answer")

    monkeypatch.setattr(driver, "_act", lost)
    with pytest.raises(UncertainCallError):
        driver.commit_update(record, 5, timeout=SECONDS)
    if earlier:  # the label cannot tell which weights are in use
        with pytest.raises(ServerError, match="may be loaded in part only"):
            generate(driver, record, request())
        return
    with pytest.raises(ServerError, match="only a verified update is committed"):
        act(record.address, "commit", 5, SECONDS)
    assert_serves(driver, record, weights(0), -1)


def test_no_token_gets_a_version_while_the_label_of_new_weights_is_uncertain(server, driver, record):
    prepare(driver, record, weights(1), 5)
    server.late["/finish_weight_update"] = 0.5
    with pytest.raises(UncertainCallError):
        driver.commit_update(record, 5, timeout=0.2)
    wait_for(lambda: not server.paused)
    with pytest.raises(ServerError, match="may be loaded in part only; restart the server"):
        generate(driver, record, request())
    publish(driver, record, weights(2), 6)
    assert_serves(driver, record, weights(2), 6)


def test_plans_for_others_are_refused(driver, record):
    other = replace(record, incarnation="other")
    plan = UpdatePlan(WeightManifest(5, ()), "shm", {"arena": "a"}, "other")
    with pytest.raises(ServerError, match="found a plan for incarnation other"):
        driver.begin_update(other, plan, timeout=SECONDS)
    with pytest.raises(ServerError, match="transport 'disk'"):
        driver.begin_update(record, replace(plan, transport="disk"), timeout=SECONDS)
    with pytest.raises(ServerError, match="found 2 ranks"):
        make_driver("distributed").begin_update(
            replace(record, tensor=2), replace(plan, transport="distributed"), timeout=SECONDS
        )


def test_workers_that_disagree_are_found(driver, record, monkeypatch):
    one = {"incarnation": "i", "version": 5, "checksums": {"a": "1"}}
    monkeypatch.setattr(driver, "_workers", lambda *_: [one, {**one, "checksums": {"a": "2"}}])
    with pytest.raises(ServerError, match="worker 1 holds other weights than worker 0"):
        driver._receipt(record.address, SECONDS)


def test_disk_needs_no_plugin_in_the_server(server, tmp_path):
    driver = make_driver("disk")
    record = driver.ready(server.address, timeout=SECONDS)
    assert record.incarnation == "abcde"
    assert not driver.capabilities.checksums
    torch.save(weights(1), tmp_path / "weights.pt")
    plan = UpdatePlan(manifest_of(weights(1), 5), "disk", {"final": str(tmp_path)}, record.incarnation)
    driver.begin_update(record, plan, timeout=SECONDS)
    driver.commit_update(record, 5, timeout=SECONDS)
    assert_serves(driver, record, weights(1), 5)
    with pytest.raises(ServerError, match="found None received"):
        driver.commit_update(record, 5, timeout=SECONDS)


def test_an_abort_returns_the_tokens_that_there_are(server, driver, record):
    first = in_background(lambda: generate(driver, record, request(max_new_tokens=1000, n=2), id="first"))
    other = in_background(lambda: generate(driver, record, request(max_new_tokens=100), id="other"))
    wait_for(lambda: len(server.running) == 3)
    driver.abort(record, [], timeout=SECONDS)
    driver.abort(record, ["first"], timeout=SECONDS)
    assert {answer.stop_reason for answer in first()} == {"abort"}
    assert other()[0].stop_reason == "length"
    last = in_background(lambda: generate(driver, record, request(max_new_tokens=1000)))
    wait_for(lambda: server.running)
    driver.abort(record, None, timeout=SECONDS)
    assert 0 < len(last()[0].token_ids) < 1000


def test_a_paused_server_is_seen_and_resumed(driver, record):
    driver.pause(record, "wait", timeout=SECONDS)
    assert driver.state(record, timeout=SECONDS).paused
    driver.resume(record, timeout=SECONDS)
    assert not driver.state(record, timeout=SECONDS).paused
