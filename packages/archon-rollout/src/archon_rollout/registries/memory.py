"""The ``memory`` registry: for servers and trainer in one process, and for tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from archon_core.contracts.server_registry import RegistryChange
from archon_core.errors import ServerError
from archon_core.serving.change_log import ChangeLog
from archon_core.serving.record import ServerRecord


class MemoryRegistry:
    """Entries in this object; implements ``contracts.server_registry.ServerRegistry``.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: dict[str, tuple[ServerRecord, float]] = {}
        self._log = ChangeLog()

    def announce(self, id: str, record: ServerRecord, ttl: float) -> MemoryAnnouncement:
        """Add an entry."""
        announcement = MemoryAnnouncement(self, id, record, ttl)
        announcement.refresh()
        return announcement

    def list(self) -> Mapping[str, ServerRecord]:
        """All entries that have not expired."""
        now = self._clock()
        self._entries = {id: entry for id, entry in self._entries.items() if now < entry[1]}
        return {id: record for id, (record, _) in self._entries.items()}

    def changes(self, since: int) -> tuple[int, Sequence[RegistryChange]]:
        """The changes after a cursor, and the next cursor."""
        return self._log.changes(self.list(), since)

    def close(self) -> None:
        """Nothing to free."""

    def put(self, id: str, record: ServerRecord, ttl: float) -> None:
        """Write an entry, for its announcement."""
        self._entries[id] = (record, self._clock() + ttl)

    def remove(self, id: str) -> None:
        """Remove an entry, for its announcement."""
        self._entries.pop(id, None)


class MemoryAnnouncement:
    """An entry of a ``MemoryRegistry``."""

    def __init__(self, registry: MemoryRegistry, id: str, record: ServerRecord, ttl: float) -> None:
        self._registry, self._id, self._record, self._ttl = registry, id, record, ttl
        self._withdrawn = False

    def refresh(self, record: ServerRecord | None = None) -> None:
        """Renew the time to live."""
        if self._withdrawn:
            raise ServerError(
                f"registry entry {self._id!r}: found a refresh after withdraw(); announce the server again"
            )
        self._record = record or self._record
        self._registry.put(self._id, self._record, self._ttl)

    def withdraw(self) -> None:
        """Remove the entry."""
        self._withdrawn = True
        self._registry.remove(self._id)


def memory_registry(config: Any, *, run: str, addresses: Sequence[str] = ()) -> MemoryRegistry:
    """The target of the ``memory`` registry, which no other process sees."""
    return MemoryRegistry()
