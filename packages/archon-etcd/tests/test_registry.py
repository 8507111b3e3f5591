"""The etcd registry against a real etcd."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from etcd_process import MISSING, Etcd

from archon_core.contracts.server_registry import RegistryChange
from archon_core.errors import ConfigError, ServerError
from archon_core.serving.record import ServerRecord
from archon_etcd.registry import EtcdRegistry, etcd_registry

A = ServerRecord("127.0.0.1:8000", "aaaa", "served")
B = ServerRecord("127.0.0.1:8001", "bbbb", "served", version=3)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory):
    if MISSING:
        pytest.skip(MISSING)
    server = Etcd(tmp_path_factory.mktemp("etcd") / "data")
    yield server
    server.stop()


def wait_until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def test_entries_come_change_and_go(etcd) -> None:
    registry = etcd_registry(SimpleNamespace(etcd3_addr=etcd.address), run="r1")
    assert registry.list() == {}
    first = registry.announce("a", A, ttl=60)
    cursor, changes = registry.changes(0)
    assert changes == [RegistryChange("a", A)]
    other = EtcdRegistry(etcd.address, "r1")
    other.announce("b", B, ttl=60)
    assert registry.list() == {"a": A, "b": B}
    moved = ServerRecord(A.address, A.incarnation, "served", version=7)
    first.refresh(moved)
    first.withdraw()
    first.withdraw()
    assert registry.changes(cursor)[1] == [RegistryChange("a", None), RegistryChange("b", B)]
    assert EtcdRegistry(etcd.address, "r2").list() == {}, "runs are apart"
    with pytest.raises(ServerError, match="refresh after withdraw"):
        first.refresh()
    registry.close()


def test_an_entry_that_nobody_refreshes_expires(etcd) -> None:
    registry = EtcdRegistry(etcd.address, "expiry")
    kept, lost = registry.announce("a", A, ttl=1.5), registry.announce("b", B, ttl=1.5)

    def only_one_is_left() -> bool:
        kept.refresh()
        return registry.list() == {"a": A}

    wait_until(only_one_is_left)
    lost.refresh()
    assert registry.list() == {"a": A, "b": B}, "a refresh after the expiry writes the entry again"


def test_an_etcd_that_is_gone_is_an_error_until_it_is_back(etcd) -> None:
    registry = EtcdRegistry(etcd.address, "outage")
    announcement = registry.announce("a", A, ttl=60)
    etcd.stop()
    with pytest.raises(ServerError, match=rf"etcd at {etcd.address} did not answer"):
        registry.list()
    with pytest.raises(ServerError, match="start etcd there, or correct the address"):
        announcement.refresh()
    etcd.start()
    announcement.refresh()
    assert registry.list() == {"a": A}


def test_other_values_under_its_keys_hide_no_server_and_are_logged_once(etcd, caplog) -> None:
    registry = EtcdRegistry(etcd.address, "damage")
    record = ServerRecord("127.0.0.1:8000", "aaaa", "served")
    registry.announce("a", record, ttl=60)
    assert registry.list() == {"a": record}
    for key in ("a", "x"):
        registry.client.put(f"/archon/damage/servers/{key}", "no json")
    for _ in range(2):
        assert registry.list() == {"a": record}
    texts = [entry.getMessage() for entry in caplog.records if entry.name == "archon_etcd.registry"]
    assert [text.partition(":")[0] for text in texts] == ["/archon/damage/servers/a", "/archon/damage/servers/x"]


def test_wrong_addresses_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"found 'localhost'; allowed is host:port"):
        EtcdRegistry("localhost", "run")
