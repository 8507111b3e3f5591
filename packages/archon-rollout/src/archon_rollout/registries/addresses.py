"""The ``static`` and ``dns`` registries: servers that somebody else starts, known by their addresses only.

Their records have an empty incarnation, which the pool asks the servers for.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from archon_core.contracts.server_registry import RegistryChange
from archon_core.errors import ConfigError, ServerError
from archon_core.serving.change_log import ChangeLog
from archon_core.serving.record import ServerRecord


class AddressRegistry:
    """A list of addresses; implements ``contracts.server_registry.ServerRegistry``, except that nobody can announce.

    Args:
        addresses: ``host:port`` of every server.
        kind: kind of the servers; empty if only they know it.
        resolve: look up each host name at every ``list``, with one entry per address that it has.
    """

    def __init__(self, addresses: Sequence[str], kind: str = "", *, resolve: bool = False) -> None:
        for address in addresses:
            host, _, port = address.rpartition(":")
            if not host or not port.isdigit():
                raise ServerError(f"rollout.addresses: found {address!r}; allowed is host:port; add the port")
        self._addresses, self._kind, self._resolve = tuple(addresses), kind, resolve
        self._log = ChangeLog()

    def announce(self, id: str, record: ServerRecord, ttl: float) -> NoReturn:
        """Refused: the list comes from the configuration.

        Raises:
            ServerError: always.
        """
        raise ServerError(
            f"server registry: found an announcement of {record.address}; allowed are the configured addresses; "
            "for servers that come and go, use the registry 'folder' or 'etcd'"
        )

    def list(self) -> Mapping[str, ServerRecord]:
        """One entry per address.

        Raises:
            ServerError: a host name cannot be resolved.
        """
        found = dict.fromkeys(self._addresses)
        if self._resolve:
            found = dict.fromkeys(resolved for address in found for resolved in _look_up(address))
        return {address: ServerRecord(address, "", self._kind) for address in found}

    def changes(self, since: int) -> tuple[int, Sequence[RegistryChange]]:
        """The changes after a cursor, and the next cursor. Raises ServerError as ``list`` does."""
        return self._log.changes(self.list(), since)

    def close(self) -> None:
        """Nothing to free."""


def _look_up(address: str) -> list[str]:
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise ServerError(f"rollout.addresses: cannot resolve {host!r}: {error}; check the name") from error
    hosts = dict.fromkeys(str(entry[4][0]) for entry in found)
    return [f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in hosts]


def static_registry(config: Any, *, run: str, addresses: Sequence[str] = ()) -> AddressRegistry:
    """The target of the ``static`` registry."""
    return AddressRegistry(addresses)


def dns_registry(config: Any, *, run: str, addresses: Sequence[str] = ()) -> AddressRegistry:
    """The target of the ``dns`` registry.

    Raises:
        ConfigError: there are no names to look up.
    """
    if not addresses:
        raise ConfigError(
            "cluster.name_resolve.type: found dns without rollout.addresses; set rollout.addresses=[NAME:PORT] to the "
            "host names to look up"
        )
    return AddressRegistry(addresses, resolve=True)
