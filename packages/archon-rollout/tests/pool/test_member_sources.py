"""The servers of several registries: outages, other kinds, and the trainer's status file."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest
from fake_servers import FakeDriver, FakeServer

from archon_core.contracts.rollout import RolloutConfig
from archon_core.errors import ServerError
from archon_core.serving.record import ServerRecord
from archon_rollout.pool.member_sources import GRACE_SECONDS, MemberSources
from archon_rollout.pool.pool import Pool
from archon_rollout.pool.status_file import StatusFile, read_status
from archon_rollout.registries.memory import MemoryRegistry

A = ServerRecord("127.0.0.1:8000", "aaaa", "served")
B = ServerRecord("127.0.0.1:8001", "bbbb", "served")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Flaky(MemoryRegistry):
    error = ""
    kind: type[Exception] = ServerError

    def list(self):
        if self.error:
            raise self.kind(self.error)
        return super().list()


@pytest.mark.parametrize("kind", [ServerError, OSError])
def test_an_outage_of_one_registry_keeps_its_servers_until_they_had_time_to_come_back(caplog, kind) -> None:
    clock = Clock()
    own, shared = MemoryRegistry(clock), Flaky(clock)
    shared.kind = kind
    own.announce("a", A, ttl=1e9)
    entry = shared.announce("b", B, ttl=5)
    sources = MemberSources([own, shared], clock=clock)
    assert sources.read().records == (A, B)
    caplog.set_level(logging.WARNING)
    shared.error, clock.now = "stale file handle", 60.0
    for _ in range(3):
        listing = sources.read()
        assert (listing.records, listing.error) == ((A, B), "stale file handle")
    shared.error = ""
    assert sources.read().records == (A, B), "its entry has expired, because it could not refresh it either"
    clock.now += GRACE_SECONDS
    assert sources.read().records == (A,)
    entry.refresh()
    assert sources.read().records == (A, B)
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        "cannot read the registry of servers",
        "the registry of servers can be read again",
    ]


def test_servers_of_another_kind_are_left_out_and_reported_once(caplog) -> None:
    registry = MemoryRegistry()
    registry.announce("a", A, ttl=60)
    registry.announce("b", replace(B, kind="vllm"), ttl=60)
    sources = MemberSources([registry], kind="served")
    for _ in range(2):
        assert sources.read().records == (A,)
    assert caplog.messages == [
        "server 127.0.0.1:8001 is left out: it is of the kind vllm, this run uses served",
    ]


def test_a_trainer_keeps_its_opinion_in_a_file(tmp_path) -> None:
    assert read_status(tmp_path) is None
    registry = MemoryRegistry()
    driver = FakeDriver(FakeServer(A), FakeServer(B, refuses="out of memory"))
    for record in (A, B):
        registry.announce(record.incarnation, record, ttl=60)
    options = RolloutConfig(health_check_failure_threshold=1, setup_timeout=20.0, health_check_interval_seconds=0.02)
    pool = Pool(registry, driver, options, status_file=StatusFile(tmp_path, 0.02))
    pool.start()
    try:
        while len(pool.wait_for_receivers()) < 2:
            pass
        pool.committed(4, {"aaaa": "", "bbbb": ""})
        pool.decide()
        asyncio.run(pool.refresh())
    finally:
        pool.stop()
    status = read_status(tmp_path)
    assert status is not None
    assert (status.version, status.epoch, status.ended, status.registry_error) == (4, 1, True, "")
    first, second = status.members
    assert (first.state, first.version, first.address) == ("active", 4, A.address)
    assert (second.state, second.reason) == ("out", "1 probes failed; the last one: out of memory")
    assert status.age < 60
    (tmp_path / "status.json").write_text('{"version": "x"}')
    with pytest.raises(ServerError, match="TrainerStatus"):
        read_status(tmp_path)
    StatusFile(tmp_path / "missing", 1.0).write(pool.status())  # training goes on without the file
