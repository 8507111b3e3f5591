"""The ``etcd`` registry: one key per server, which disappears with its lease.

Keys are ``/archon/<run>/servers/<id>``, values records as JSON. etcd's own clock measures the leases, so the clocks of
the hosts do not matter. The client talks to etcd's HTTP gateway; it needs no gRPC.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import requests
from etcd3gw.client import Etcd3Client
from etcd3gw.exceptions import ConnectionFailedError, Etcd3Exception

from archon_core.contracts.server_registry import RegistryChange
from archon_core.errors import ConfigError, ServerError
from archon_core.serving.change_log import ChangeLog
from archon_core.serving.record import ServerRecord

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 5.0
"""Time limit of one call to etcd."""

T = TypeVar("T")


class EtcdRegistry:
    """Entries in etcd; implements ``contracts.server_registry.ServerRegistry``. Every method may raise ServerError.

    Args:
        address: ``host:port`` of etcd.
        run: id of the run.

    Raises:
        ConfigError: ``address`` is not ``host:port``.
    """

    def __init__(self, address: str, run: str) -> None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(
                f"cluster.name_resolve.etcd3_addr: found {address!r}; allowed is host:port; etcd's usual port is 2379"
            )
        self._address = address
        self._client = Etcd3Client(host=host.strip("[]"), port=int(port), timeout=TIMEOUT_SECONDS)
        self._prefix = f"/archon/{run}/servers/"
        self._log = ChangeLog()
        self._known: dict[str, ServerRecord] = {}
        self._damaged: set[str] = set()

    def announce(self, id: str, record: ServerRecord, ttl: float) -> EtcdAnnouncement:
        """Add an entry. etcd counts whole seconds: ``ttl`` is rounded up."""
        announcement = EtcdAnnouncement(self, f"{self._prefix}{id}", record, math.ceil(ttl))
        announcement.refresh()
        return announcement

    def list(self) -> Mapping[str, ServerRecord]:
        """All entries whose lease has not expired. A damaged one keeps its last known record, if any, and is logged
        once."""
        found = self.call(lambda: self._client.get_prefix(self._prefix))
        known, damaged = {}, set()
        for value, pair in found:
            key = pair["key"].decode()
            id = key.removeprefix(self._prefix)
            try:
                known[id] = _read(key, value)
            except ServerError as error:
                damaged.add(id)
                if id in self._known:
                    known[id] = self._known[id]
                if id not in self._damaged:
                    logger.warning("%s", error)
        self._known, self._damaged = known, damaged
        return dict(known)

    def changes(self, since: int) -> tuple[int, Sequence[RegistryChange]]:
        """The changes after a cursor, and the next cursor."""
        return self._log.changes(self.list(), since)

    def close(self) -> None:
        """Close the connections."""
        self._client.session.close()

    def call(self, work: Callable[[], T]) -> T:
        """Run a call to etcd; its errors become ServerError."""
        with _explained(self._address):
            return work()

    @property
    def client(self) -> Etcd3Client:
        """The connection, for announcements."""
        return self._client


class EtcdAnnouncement:
    """An entry of an ``EtcdRegistry``."""

    def __init__(self, registry: EtcdRegistry, key: str, record: ServerRecord, ttl: int) -> None:
        self._registry, self._key, self._record, self._ttl = registry, key, record, ttl
        self._lease: Any = None
        self._withdrawn = False

    def refresh(self, record: ServerRecord | None = None) -> None:
        """Renew the lease; write the record if it is new, or if the lease has expired in the meantime."""
        if self._withdrawn:
            raise ServerError(f"{self._key}: found a refresh after withdraw(); announce the server again")
        is_new = record is not None and record != self._record
        self._record = record or self._record
        self._registry.call(lambda: self._renew(is_new))

    def withdraw(self) -> None:
        """Remove the entry. If etcd cannot be reached, the entry expires."""
        self._withdrawn = True
        lease, self._lease = self._lease, None
        if lease is not None:
            with contextlib.suppress(ServerError):
                self._registry.call(lease.revoke)

    def _renew(self, is_new: bool) -> None:
        alive = self._lease is not None and self._lease.refresh() > 0
        if not alive:
            self._lease = self._registry.client.lease(self._ttl)
        if is_new or not alive:
            self._registry.client.put(self._key, json.dumps(self._record.as_data()), lease=self._lease)


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
    try:
        yield
    except (Etcd3Exception, requests.RequestException, OSError) as error:
        detail = getattr(error, "detail_text", None) or str(error)
        reason = "cannot connect" if isinstance(error, ConnectionFailedError) else f"{type(error).__name__}: {detail}"
        raise ServerError(
            f"cluster.name_resolve.etcd3_addr: etcd at {address} did not answer: {reason}; start etcd there, or "
            "correct the address"
        ) from error


def _read(key: str, value: bytes) -> ServerRecord:
    try:
        return ServerRecord.from_data(json.loads(value))
    except ValueError as error:
        raise ServerError(f"{key}: found no record of a server ({error}); delete the key in etcd") from error


def etcd_registry(config: Any, *, run: str, addresses: Sequence[str] = ()) -> EtcdRegistry:
    """The target of the ``etcd`` registry."""
    return EtcdRegistry(config.etcd3_addr, run)
