"""``changes`` of a registry that can only list its entries: compares the lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from archon_core.contracts.server_registry import RegistryChange
from archon_core.serving.record import ServerRecord


class ChangeLog:
    """The changes between successive lists of a registry."""

    def __init__(self) -> None:
        self._known: dict[str, ServerRecord] = {}
        self._changes: list[RegistryChange] = []

    def changes(self, entries: Mapping[str, ServerRecord], since: int) -> tuple[int, Sequence[RegistryChange]]:
        """The changes after a cursor, and the next cursor.

        Args:
            entries: the registry's entries now.
            since: a cursor that this method returned; 0 gives all entries.
        """
        gone = [name for name in self._known if name not in entries]
        new = {name: record for name, record in entries.items() if self._known.get(name) != record}
        self._changes += [RegistryChange(name, None) for name in gone]
        self._changes += [RegistryChange(name, record) for name, record in new.items()]
        self._known = dict(entries)
        # Cursor 0 is never returned, so that it always means "everything".
        cursor = len(self._changes) + 1
        if since == 0:
            return cursor, [RegistryChange(name, record) for name, record in entries.items()]
        return cursor, self._changes[since - 1 :]
