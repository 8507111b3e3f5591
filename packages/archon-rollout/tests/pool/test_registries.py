"""Registries: entries come, go and expire."""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path

import pytest

from archon_core.contracts.server_registry import RegistryChange
from archon_core.errors import ServerError
from archon_core.serving.record import ServerRecord
from archon_rollout.registries.addresses import AddressRegistry
from archon_rollout.registries.folder import FolderRegistry
from archon_rollout.registries.memory import MemoryRegistry

A = ServerRecord("127.0.0.1:8000", "aaaa", "served")
B = ServerRecord("127.0.0.1:8001", "bbbb", "served", version=3)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "folder"])
def registry(request, tmp_path, clock):
    return MemoryRegistry(clock) if request.param == "memory" else FolderRegistry(tmp_path / "servers", clock)


def test_entries_expire_unless_they_are_refreshed(registry, clock) -> None:
    assert registry.list() == {}
    first, _ = registry.announce("a", A, ttl=5), registry.announce("b", B, ttl=5)
    assert registry.list() == {"a": A, "b": B}
    clock.now = 4.9
    first.refresh()
    assert registry.list() == {"a": A, "b": B}
    clock.now = 5.0
    assert registry.list() == {"a": A}
    first.withdraw()
    first.withdraw()
    assert registry.list() == {}
    with pytest.raises(ServerError, match="announce the server again"):
        first.refresh()


def test_changes_follow_a_cursor(registry, clock) -> None:
    first = registry.announce("a", A, ttl=5)
    cursor, changes = registry.changes(0)
    assert changes == [RegistryChange("a", A)]
    assert registry.changes(cursor) == (cursor, [])
    registry.announce("b", B, ttl=50)
    newer, changes = registry.changes(cursor)
    assert changes == [RegistryChange("b", B)]
    first.withdraw()
    last, changes = registry.changes(newer)
    assert changes == [RegistryChange("a", None)]
    assert registry.changes(cursor)[1] == [RegistryChange("b", B), RegistryChange("a", None)]
    assert registry.changes(0) == (last, [RegistryChange("b", B)])


def test_a_folder_does_not_trust_clocks_of_other_hosts(tmp_path, clock) -> None:
    registry = FolderRegistry(tmp_path, clock)
    registry.announce("a", A, ttl=5)
    os.utime(tmp_path / "a.server.json", (0, 0))
    assert registry.list() == {"a": A}, "a time stamp of 1970 says nothing"
    clock.now = 5.0
    assert registry.list() == {}
    assert FolderRegistry(tmp_path, clock).list() == {"a": A}, "a new reader has seen no silence yet"


def test_a_restart_under_the_same_id_is_a_new_entry(tmp_path, clock) -> None:
    registry = FolderRegistry(tmp_path, clock)
    registry.announce("a", A, ttl=5)
    assert registry.list() == {"a": A}
    clock.now = 4.0
    again = ServerRecord(A.address, "other", "served")
    registry.announce("a", again, ttl=5)
    assert registry.list() == {"a": again}
    clock.now = 8.0
    assert registry.list() == {"a": again}


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"record": {}, "ttl": 5, "beat": "x"})])
def test_a_damaged_file_hides_no_other_server_and_is_deleted_later(tmp_path, clock, caplog, text) -> None:
    registry = FolderRegistry(tmp_path, clock)
    healthy, _ = registry.announce("a", A, ttl=200), registry.announce("b", B, ttl=5)
    assert registry.list() == {"a": A, "b": B}
    for name in ("b", "new"):
        (tmp_path / f"{name}.server.json").write_text(text)
    for clock.now in (4.0, 63.9):
        assert registry.list() == {"a": A, "b": B}, "damage is no departure"
    assert [record.getMessage().count("found no entry of a server") for record in caplog.records] == [1, 1]
    healthy.refresh()
    clock.now = 64.0
    assert registry.list() == {"a": A}
    assert [path.name for path in tmp_path.iterdir()] == ["a.server.json"]


def test_a_damaged_file_that_its_server_writes_again_is_an_entry(tmp_path, clock) -> None:
    registry = FolderRegistry(tmp_path, clock)
    announced = registry.announce("a", A, ttl=5)
    (tmp_path / "a.server.json").write_text("{")
    assert registry.list() == {}
    announced.refresh()
    clock.now = 60.0
    assert registry.list() == {"a": A}


def test_a_file_that_cannot_be_read_keeps_its_entry(tmp_path, clock) -> None:
    registry = FolderRegistry(tmp_path, clock)
    registry.announce("a", A, ttl=5)
    assert registry.list() == {"a": A}
    path, away = tmp_path / "a.server.json", tmp_path / "away"
    path.rename(away)
    path.mkdir()  # reading it raises OSError, for root too
    clock.now = 1000.0
    assert registry.list() == {"a": A}
    path.rmdir()
    away.rename(path)
    clock.now = 1004.0
    assert registry.list() == {"a": A}
    clock.now = 1005.0
    assert registry.list() == {}


def test_an_unreadable_folder_is_an_error(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerError, match="cannot write the server's entry"):
        FolderRegistry(tmp_path / "file").announce("a", A, ttl=5)
    with pytest.raises(ServerError, match="allowed are letters"):
        FolderRegistry(tmp_path).announce("../a", A, ttl=5)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES, errno.EIO])
def test_a_folder_whose_share_fails_is_an_error_of_the_registry(tmp_path, monkeypatch, number) -> None:
    registry = FolderRegistry(tmp_path)
    assert registry.list() == {}

    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "stat", fail)
    monkeypatch.setattr(os, "listdir", fail)
    with pytest.raises(ServerError, match="repair the folder"):
        registry.list()


def test_a_share_that_was_unmounted_for_a_while_is_no_news_about_servers(tmp_path, clock) -> None:
    folder = tmp_path / "servers"
    registry = FolderRegistry(folder, clock)
    assert registry.list() == {}, "nobody has announced yet"
    registry.announce("a", A, ttl=5)
    assert registry.list() == {"a": A}
    folder.rename(tmp_path / "away")
    clock.now = 100.0
    with pytest.raises(ServerError, match="found no folder, and it had entries"):
        registry.list()
    (tmp_path / "away").rename(folder)
    assert registry.list() == {"a": A}, "the server could not write either"
    clock.now = 104.0
    assert registry.list() == {"a": A}
    clock.now = 105.0
    assert registry.list() == {}


def test_addresses_of_the_configuration_have_no_incarnation() -> None:
    registry = AddressRegistry(["127.0.0.1:8000", "127.0.0.1:8001", "127.0.0.1:8000"], "vllm")
    assert list(registry.list().values()) == [
        ServerRecord("127.0.0.1:8000", "", "vllm"),
        ServerRecord("127.0.0.1:8001", "", "vllm"),
    ]
    with pytest.raises(ServerError, match="allowed are the configured addresses"):
        registry.announce("a", A, ttl=5)
    with pytest.raises(ServerError, match="add the port"):
        AddressRegistry(["localhost"], "vllm")


def test_a_name_is_resolved_again_and_again(monkeypatch) -> None:
    hosts = ["10.0.0.1"]

    def resolve(host, port, **options):
        assert host == "servers"
        if not hosts:
            raise socket.gaierror("Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (name, port)) for name in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    registry = AddressRegistry(["servers:8000"], "vllm", resolve=True)
    assert list(registry.list()) == ["10.0.0.1:8000"]
    hosts.append("10.0.0.2")
    assert list(registry.list()) == ["10.0.0.1:8000", "10.0.0.2:8000"]
    hosts.clear()
    with pytest.raises(ServerError, match="cannot resolve 'servers'"):
        registry.list()
