"""Scoring on a pool of servers with frozen weights: whose answers count, and what happens when servers fail."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
import torch
from fake_servers import CURRENT, FakeDriver, FakeServer
from safetensors.torch import save_file

from archon_core.contracts.rollout import RolloutConfig, ScoredModel
from archon_core.errors import ConfigError, ServerError, TrainingError
from archon_core.plugins import InferenceEngineSpec, ServerDriverSpec, registry
from archon_core.ranks.ranks import Ranks
from archon_core.serving.record import ServerRecord
from archon_core.serving.scores import ServedModelInfo
from archon_engine.checkpoint.fingerprint import checkpoint_fingerprint
from archon_rollout.served.scoring_engine import ScoringServers, requests_of

SEQUENCES = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [2, 2], [7, 3, 1]]
EXPECTED = [[-float(token) / 2 for token in ids[1:]] for ids in SEQUENCES]
QUICK = {
    "health_check_interval_seconds": 0.05,
    "health_check_failure_threshold": 2,
    "setup_timeout": 0.3,
    "topology_change_cooldown_seconds": 0.0,
}


class Servers:
    """Servers of one test, and engines that use them."""

    def __init__(self, folder, *names: str) -> None:
        self.folder, self.driver = folder, FakeDriver()
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"}), encoding="utf-8")
        save_file({"weight": torch.arange(100.0)}, folder / "model.safetensors")
        for name in names:
            self.start(name)
        self.engines: list[ScoringServers] = []

    def start(self, name: str, *, port: int = 0) -> FakeServer:
        record = ServerRecord(f"127.0.0.1:{port or 8000 + ord(name)}", name, "fake")
        info = ServedModelInfo("model", 0, vocab_size=100, fingerprint=checkpoint_fingerprint(self.folder))
        self.driver.servers[name] = FakeServer(record, info=info)
        return self.driver.servers[name]

    def engine(self, *, temperature: float = 0.5, **options) -> ScoringServers:
        addresses = [server.record.address for server in self.driver.servers.values()]
        config = RolloutConfig(**{"backend": "fake:d1", "addresses": addresses, **QUICK, **options})
        model = ScoredModel(str(self.folder), vocab_size=100, max_tokens=6, temperature=temperature)
        engine = ScoringServers(config, model, option="teacher.rollout", ranks=Ranks(), folder=self.folder / "logs")
        self.engines.append(engine)
        return engine


@pytest.fixture
def servers(tmp_path):
    made = Servers(tmp_path / "model", "a", "b")
    specs = (
        InferenceEngineSpec(name="fake", target="fake_servers:FakeDriver", letters="d"),
        ServerDriverSpec(name="fake", target="fake_servers:current_driver", letters="d"),
    )
    for spec in specs:
        registry().add(spec)
    CURRENT.append(made.driver)
    yield made
    CURRENT.clear()
    for engine in made.engines:
        engine.close()
    for spec in specs:
        registry().remove(spec.kind, spec.name)


def test_sequences_are_scored_in_requests_of_bounded_size_by_all_servers(servers):
    engine = servers.engine()
    assert engine.score(SEQUENCES) == EXPECTED
    assert engine.score([]) == []
    assert engine.decisions == []
    sent = [server.scored for server in servers.driver.servers.values()]
    assert all(sent)
    assert sorted(len(one.sequences) for requests in sent for one in requests) == [1, 2, 2]


def test_a_longer_sequence_than_a_request_may_have_is_sent_alone():
    model = ScoredModel("", vocab_size=9, max_tokens=4)
    lengths = [[len(ids) for ids in one.sequences] for one in requests_of([[1] * n for n in (2, 2, 1, 7, 3, 1)], model)]
    assert lengths == [[2, 2], [1], [7], [3, 1]]


def test_requests_of_a_server_that_dies_move_to_another(servers):
    engine = servers.engine()
    servers.driver.servers["a"].refuses = "out of memory"
    assert engine.score(SEQUENCES) == EXPECTED
    del servers.driver.servers["a"]
    assert engine.score(SEQUENCES) == EXPECTED


def test_a_run_without_servers_ends_with_an_error_that_names_them(servers):
    engine = servers.engine()
    del servers.driver.servers["a"], servers.driver.servers["b"]
    with pytest.raises((ServerError, TrainingError), match=r"(?s)teacher\.rollout.*127\.0\.0\.1:8097.*cannot connect"):
        engine.score(SEQUENCES)


def test_a_server_that_starts_again_is_checked_and_joins(servers):
    engine = servers.engine()
    assert engine.score(SEQUENCES) == EXPECTED
    del servers.driver.servers["a"], servers.driver.servers["b"]
    server = servers.start("c", port=8000 + ord("a"))
    engine._config.setup_timeout = 20.0
    deadline = time.monotonic() + 20
    while not server.scored:
        assert time.monotonic() < deadline
        try:
            assert engine.score(SEQUENCES) == EXPECTED
        except ServerError:  # while the pool still asks servers that are gone
            continue


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 64}, r"found a vocabulary of 64 tokens \(model\); allowed is at least 100, the actor's"),
        (
            {"fingerprint": "other", "name": "/m"},
            r"found the model /m, with another configuration or other weights",
        ),
        ({"version": 3}, r"found weights of version 0, published to it after its start; allowed are those of its"),
    ],
)
def test_a_server_of_another_model_is_refused(servers, change, message):
    server = servers.driver.servers["b"]
    server.info = replace(server.info, **change)
    with pytest.raises(ConfigError, match=rf"^teacher\.rollout: server 127\.0\.0\.1:8098: {message}"):
        servers.engine()


def test_weights_that_change_during_a_run_are_noticed(servers):
    del servers.driver.servers["b"]
    engine, server = servers.engine(request_retries=1), servers.driver.servers["a"]
    server.record = replace(server.record, version=1)
    with pytest.raises((ServerError, TrainingError), match=r"(?s)127\.0\.0\.1:8097.* of version 1.*allowed"):
        engine.score(SEQUENCES)


def test_a_server_that_does_not_say_what_it_loaded_is_a_decision(servers):
    for server in servers.driver.servers.values():
        server.info = replace(server.info, fingerprint="")
    [decision] = servers.engine().decisions
    assert decision.option == "teacher.rollout.addresses"
    assert decision.effective == "the models of 127.0.0.1:8097, 127.0.0.1:8098, compared by their vocabulary alone"


def test_servers_that_cannot_score_are_refused(servers, monkeypatch):
    limited = replace(FakeDriver.capabilities, score_temperatures=False)
    monkeypatch.setattr(FakeDriver, "capabilities", limited)
    assert servers.engine(temperature=1.0).score([[3, 4]]) == [[-4.0]]
    with pytest.raises(ConfigError, match=r"gconfig\.temperature: found 0\.5 with teacher\.rollout\.backend=fake:d1"):
        servers.engine()
    monkeypatch.setattr(FakeDriver, "capabilities", replace(limited, scores=False))
    with pytest.raises(ConfigError, match=r"teacher\.rollout\.backend: found fake:d1, whose servers do not compute"):
        servers.engine()
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"teacher\.rollout\.addresses: found no server at 127\.0\.0\.1:1; start it"):
        servers.engine(addresses=["127.0.0.1:1"])
