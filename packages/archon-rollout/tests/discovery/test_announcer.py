"""A server's announcement: refreshed, repeated after failures, withdrawn at the end."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import pytest

from archon_core.errors import ServerError
from archon_core.ranks.addresses import own_address
from archon_core.serving.record import ServerRecord
from archon_rollout.registries.announcer import Announcer, entry_id
from archon_rollout.registries.folder import FolderRegistry
from archon_rollout.registries.memory import MemoryRegistry
from archon_rollout.server.address import advertised
from archon_rollout.server.throughput import WINDOW_SECONDS, Throughput

A = ServerRecord("127.0.0.1:8000", "aaaa", "served", version=1)


def wait_until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


class Unreachable(MemoryRegistry):
    """Fails while ``error`` is set."""

    error: Exception | None = None
    closed = False
    attempts = 0

    def put(self, id, record, ttl) -> None:
        self.attempts += 1
        if self.error is not None:
            raise self.error
        super().put(id, record, ttl)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("error", [ServerError("no etcd"), RuntimeError("a bug")], ids=str)
def test_an_announcement_survives_an_unreachable_registry_and_ends_with_a_withdrawal(error, caplog) -> None:
    caplog.set_level(logging.INFO, logger="archon_rollout.registries.announcer")
    versions = iter(range(1, 1000))
    registry = Unreachable()
    registry.error = error
    announcer = Announcer(
        registry, lambda: replace(A, version=next(versions)), ttl=0.06, place="the registry memory", first_retry=0.001
    )
    announcer.start()
    try:
        wait_until(lambda: registry.attempts > 4)
        assert registry.list() == {}
        registry.error = None
        wait_until(lambda: registry.list())
        registry.error = error
        wait_until(lambda: not registry.list())
        registry.error = None
        wait_until(lambda: registry.list() and registry.list()[entry_id(A)].version > 5)
    finally:
        announcer.stop()
        announcer.join(30)
    assert not announcer.is_alive()
    assert registry.list() == {}
    assert registry.closed
    text = "no etcd" if isinstance(error, ServerError) else "RuntimeError: a bug"
    failed, announced = f"cannot announce this server, trying again: {text}", "announced in the registry memory"
    assert caplog.messages == [failed, announced, failed, announced, "withdrawn from the registry memory"]


def test_a_restarted_server_takes_over_its_entry_and_the_old_one_cannot_withdraw_it(tmp_path) -> None:
    registry = FolderRegistry(tmp_path)
    old = registry.announce(entry_id(A), A, ttl=60)
    again = replace(A, incarnation="bbbb")
    registry.announce(entry_id(again), again, ttl=60)
    old.withdraw()
    assert list(registry.list().values()) == [again]


def test_entries_have_the_names_of_addresses() -> None:
    assert entry_id(A) == "127.0.0.1-8000"
    assert entry_id(replace(A, address="[fe80::1]:8000")) == "fe80-1-8000"


def test_the_announced_address_is_one_that_others_can_reach() -> None:
    assert advertised("10.0.0.1", 8000) == "10.0.0.1:8000"
    assert advertised("::1", 8000) == "[::1]:8000"
    assert advertised("0.0.0.0", 8000, host="node7") == "node7:8000"
    assert advertised("0.0.0.0", 8000) == f"{own_address()}:8000"
    assert own_address() != "0.0.0.0"


def test_throughput_is_that_of_the_last_seconds() -> None:
    now = [100.0]
    throughput = Throughput(lambda: now[0])
    assert throughput.rate == 0.0
    throughput.add(30)
    throughput.add(30)
    now[0] += 2
    assert throughput.rate == 30.0
    now[0] += WINDOW_SECONDS
    throughput.add(50)
    assert throughput.rate == 50 / WINDOW_SECONDS
