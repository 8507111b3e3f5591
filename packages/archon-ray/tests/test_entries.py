"""Entries with a time to live."""

from __future__ import annotations

from archon_ray.entries import Entries


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_entries_come_change_expire_and_go() -> None:
    clock = Clock()
    entries = Entries(clock)
    start, found = entries.list()
    assert found == {}
    entries.put("a", {"address": "h:1"}, 5)
    entries.put("b", {"address": "h:2"}, 2)
    clock.now += 3
    assert entries.list() == (start, {"a": {"address": "h:1"}})
    entries.put("a", {"address": "h:3"}, 5)
    clock.now += 4
    assert entries.list()[1] == {"a": {"address": "h:3"}}
    entries.remove("a")
    entries.remove("a")
    assert entries.list()[1] == {}
    assert Entries(clock).list()[0] != start, "another start has another id"


def test_only_entries_and_calls_keep_it_busy() -> None:
    clock = Clock()
    entries = Entries(clock)
    entries.put("a", {}, 5)
    clock.now += 4
    assert entries.idle_seconds() == 0
    clock.now += 3
    assert entries.idle_seconds() == 7, "since the last call"
    entries.list()
    assert entries.idle_seconds() == 0
