"""The steps of an engine with servers, on a pool that is refreshed by hand: decisions, log and waits."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest
from test_pool import World

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest
from archon_core.errors import ServerError
from archon_core.ranks.ranks import DataRanks
from archon_core.serving.record import ServerRecord
from archon_rollout.publication.report import FailedServer, Publication
from archon_rollout.served.engine import ServedEngine

LOGGER = "archon_rollout.served.engine"


class Publisher:
    """Publishes to servers of which those in ``wrong`` fail."""

    def __init__(self) -> None:
        self.version = 0
        self.wrong: set[str] = set()

    def publish(self, servers: list[ServerRecord], *, on_commit) -> Publication:
        on_commit()
        failed = tuple(FailedServer(s, "canary", "it differs", None) for s in servers if s.incarnation in self.wrong)
        committed = tuple(s for s in servers if s.incarnation not in self.wrong)
        return Publication(self.version, committed, failed, 8, ())

    def leave_groups(self) -> None:
        pass


class Engine(ServedEngine):
    """An engine of one rank whose trainer has only a version."""

    def __init__(self, names: str, **options) -> None:
        self.world = World(names, **options)
        self.stopped = False
        self.world.pool._stop = lambda: self.stopped
        self._config, self._pool, self._processes = self.world.options, self.world.pool, None
        self._ranks = DataRanks().everyone
        self._publisher = Publisher()
        self._trainer, self._kind = SimpleNamespace(version=0), SimpleNamespace(name="served")
        self._version, self._on_switch = -1, None
        self.topology = self._pool.decide()

    def update(self, version: int) -> dict[str, float]:
        self._trainer.version = self._publisher.version = version
        return dict(self.update_weights(version))


def test_the_log_has_a_report_only_when_a_server_joined_or_failed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=LOGGER)
    engine = Engine("ab")
    engine.world.refresh()
    engine.update(0)
    assert [line.partition(":")[0] for line in caplog.messages] == [
        "servers of epoch 1",
        "published version 0 to 2 of 2 servers",
    ]
    caplog.clear()
    engine.update(1)
    assert not caplog.messages
    engine._publisher.wrong.add("a")
    engine.update(2)
    assert "failed in canary: it differs" in caplog.messages[1]
    assert caplog.messages[0] == f"servers of epoch 2: {engine.world.driver.servers['a'].record.address} left: " + (
        "canary: it differs"
    )


def test_a_stopped_run_does_not_wait_for_servers() -> None:
    engine = Engine("", setup_timeout=1000.0)
    engine.stopped = True
    with pytest.raises(KeyboardInterrupt, match="stopped while the run waited for rollout servers"):
        engine.update(0)
    engine.world.start("a")
    engine.world.refresh()
    engine.update(0)


def test_servers_that_leave_during_every_attempt_end_the_step_with_an_error() -> None:
    engine = Engine("a", request_retries=2, topology_change_cooldown_seconds=0.0)
    engine.world.refresh()
    engine.update(0)
    engine._client, engine._closed, engine._paused = engine.world.client, False, False
    engine._trainer.data_ranks = DataRanks()
    attempts = []

    async def leave(server, *arguments, **options):
        attempts.append(server)
        engine._pool.failed(server.incarnation, "no answer in 10 s")
        await asyncio.sleep(20)

    engine.world.driver.generate = leave
    publish = engine._publish

    def publish_again():
        engine.world.clock.now += 100.0
        engine._pool.announced({"a": engine.world.driver.servers["a"].record}, registry_error="")
        return publish()

    engine._publish = publish_again
    request = GenerationRequest((1,), GenerationConfig(max_new_tokens=2), (0,))
    with pytest.raises(ServerError, match=r"all servers left 3 times in a row.*\n  127.0.0.1:\d+ is out: no answer"):
        engine.generate([request])
    assert len(attempts) == 3


def test_a_step_without_an_update_has_a_decision_and_metrics_too() -> None:
    engine = Engine("ab")
    engine.world.refresh()
    assert engine.update(0)["publish/servers"] == 2
    assert engine.update(0) == {"publish/servers": 2, "publish/failed": 0}
    engine.world.announcements["a"].withdraw()
    asyncio.run(engine.world.pool.refresh())
    assert engine.update(0) == {"publish/servers": 1, "publish/failed": 0}
    assert (list(engine.topology.members), engine.topology.evicted) == (["b"], ("a",))
