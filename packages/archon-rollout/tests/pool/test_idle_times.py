"""How long servers had no request, with an injected clock."""

from __future__ import annotations

import pytest

from archon_core.serving.record import ServerRecord
from archon_rollout.pool.remote import PushedServers

SERVERS = [ServerRecord(f"127.0.0.1:{port}", name, "served") for port, name in ((1, "a"), (2, "b"))]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_share_adds_up_servers_without_a_request() -> None:
    clock = Clock()
    servers = PushedServers(clock)
    servers.update(SERVERS, 1)
    clock.now = 2.0
    first = servers.acquire(tokens=10)
    clock.now = 5.0
    second = servers.acquire(tokens=4)
    clock.now = 6.0
    servers.release(first, tokens=10)
    servers.release(second, tokens=4)
    clock.now = 10.0
    # a is busy from 2 to 6, b from 5 to 6, of 10 seconds each.
    assert servers.idle_share() == pytest.approx(1 - (4 + 1) / 20)
    clock.now = 11.0
    assert servers.idle_share() == 1.0, "since the last call"


def test_servers_count_only_while_they_are_in_service() -> None:
    clock = Clock()
    servers = PushedServers(clock)
    assert servers.idle_share() == 0.0
    clock.now = 5.0
    servers.update(SERVERS[:1], 1)
    taken = servers.acquire(tokens=1)
    clock.now = 7.0
    servers.update(SERVERS[1:], 2)
    clock.now = 8.0
    servers.release(taken, tokens=1)
    clock.now = 9.0
    assert servers.idle_share() == pytest.approx(2 / 4), "a was busy for 2 s, b idle for 2 s"
