"""Registries in which inference servers announce themselves, and the section ``cluster.name_resolve``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from archon_core.config.rules import folder_name, option, path_or_id
from archon_core.contracts.spec import Spec

if TYPE_CHECKING:
    from archon_core.serving.record import ServerRecord


@dataclass(frozen=True)
class ServerRegistrySpec(Spec):
    """A registry of servers. ``target`` names a ``ServerRegistryFactory``.

    Attributes:
        entries: where entries come from: servers that announce themselves (``announced``), ``rollout.addresses``
            (``addresses``), or the registry's own process alone (``own``).
    """

    kind: ClassVar[str] = "server_registry"
    hook: ClassVar[str] = "archon_registries"

    entries: Literal["announced", "addresses", "own"] = "announced"


@dataclass(frozen=True)
class RegistryChange:
    """One change in a registry.

    Attributes:
        id: of the entry.
        record: the new record; ``None`` if the entry was withdrawn or expired.
    """

    id: str
    record: ServerRecord | None


class Announcement(Protocol):
    """An entry in a registry, held by the server that announced it."""

    def refresh(self, record: ServerRecord | None = None) -> None:
        """Renew the time to live, optionally with a new record. Raises ServerError if the registry is unreachable."""

    def withdraw(self) -> None:
        """Remove the entry. Idempotent."""


class ServerRegistry(Protocol):
    """Knows which servers there are. Every method raises ServerError if the registry cannot be read."""

    def announce(self, id: str, record: ServerRecord, ttl: float) -> Announcement:
        """Add an entry that expires ``ttl`` seconds after its last refresh."""

    def list(self) -> Mapping[str, ServerRecord]:
        """All entries that have not expired."""

    def changes(self, since: int) -> tuple[int, Sequence[RegistryChange]]:
        """The changes after a cursor, and the next cursor. Cursor 0 gives all entries."""

    def close(self) -> None:
        """Free the connection. Entries of this process stay until they expire. Idempotent."""


@dataclass
class NameResolveConfig:
    """The registry of inference servers that the run does not start itself.

    Attributes:
        type: name of the registry: ``folder``, ``etcd``, ``ray``, ``static``, ``dns`` or ``memory``. AReaL's ``nfs``
            and ``etcd3`` are other names of ``folder`` and ``etcd``. See docs/rollout.md.
        nfs_record_root: root of the ``folder`` registry, on a file system that all hosts share; null for
            ``cluster.fileroot``.
        etcd3_addr: ``host:port`` of etcd.
        ray_actor_name: name of the actor of the ``ray`` registry, to which the run's name is added.
    """

    type: str = "folder"
    nfs_record_root: str | None = option(None, path_or_id)
    etcd3_addr: str = "localhost:2379"
    ray_actor_name: str = option("ray_kv_store", folder_name)


class ServerRegistryFactory(Protocol):
    """``target`` of a ``ServerRegistrySpec``.

    ``config`` is the section ``cluster.name_resolve``, with ``nfs_record_root`` filled in; ``run`` the run's name,
    ``<experiment_name>/<trial_name>``; ``addresses`` is ``rollout.addresses``. Creating a registry connects to nothing.
    """

    def __call__(self, config: Any, *, run: str, addresses: Sequence[str] = ()) -> ServerRegistry: ...
