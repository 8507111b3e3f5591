"""The ``folder`` registry: one file per server in a folder that all hosts share.

A file holds the record, the time to live and a counter that every refresh raises. A reader compares the counter with
what it saw before, by its own clock: an entry expires when the counter has stood still for its time to live. So the
clocks of hosts and file servers may differ. A reader that starts takes every file for alive until then, and so does one
that could not read: servers could not write either. Readers delete files that expired long ago; a server that lives
writes its file again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from archon_core.contracts.serving import RegistryChange
from archon_core.errors import ServerError
from archon_core.serving.change_log import ChangeLog
from archon_core.serving.record import ServerRecord

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SUFFIX = ".server.json"

REMOVAL_SECONDS = 60.0
"""Time after an entry's expiry at which a reader deletes its file."""


class FolderRegistry:
    """Entries are files; implements ``contracts.serving.ServerRegistry``.

    Args:
        folder: created if it does not exist.
        clock: seconds, never going back.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._seen: dict[str, tuple[str, float]] = {}
        self._existed = self._was_unreadable = False
        self._log = ChangeLog()

    def announce(self, id: str, record: ServerRecord, ttl: float) -> FolderAnnouncement:
        """Add an entry.

        Raises:
            ServerError: the folder cannot be written.
        """
        if not _ID.fullmatch(id):
            raise ServerError(f"registry id: found {id!r}; allowed are letters, digits, '.', '_' and '-'; rename it")
        announcement = FolderAnnouncement(self._path(id), record, ttl)
        announcement.refresh()
        return announcement

    def list(self) -> Mapping[str, ServerRecord]:
        """All entries that have not expired.

        Raises:
            ServerError: the folder or a file cannot be read.
        """
        try:
            found = self._read()
        except ServerError:
            self._was_unreadable = True
            raise
        now = self._clock()
        if self._was_unreadable:
            self._seen = {id: (beat, now) for id, (beat, _) in self._seen.items()}
            self._was_unreadable = False
        entries = {}
        seen = {}
        for id, data in found.items():
            beat, since = self._seen.get(id, (None, now))
            if data["beat"] != beat:
                since = now
            seen[id] = (data["beat"], since)
            if now < since + data["ttl"]:
                entries[id] = ServerRecord.from_data(data["record"])
            elif now >= since + data["ttl"] + REMOVAL_SECONDS:
                with contextlib.suppress(OSError):
                    self._path(id).unlink()
        self._seen = seen
        return entries

    def changes(self, since: int) -> tuple[int, Sequence[RegistryChange]]:
        """The changes after a cursor, and the next cursor. Raises ServerError as ``list`` does."""
        return self._log.changes(self.list(), since)

    def close(self) -> None:
        """Nothing to free."""

    def _path(self, id: str) -> Path:
        return self._folder / f"{id}{_SUFFIX}"

    def _read(self) -> dict[str, dict[str, Any]]:
        if self._existed and not self._folder.exists():
            # An unmounted share is no news about servers. Before the first entry there may be no folder yet.
            raise ServerError(f"server registry {self._folder}: found no folder, and it had entries; mend the folder")
        try:
            paths = sorted(path for path in self._folder.iterdir() if path.name.endswith(_SUFFIX))
            self._existed = True
        except FileNotFoundError:
            paths = []
        except OSError as error:
            raise ServerError(f"server registry {self._folder}: cannot list it: {error}; mend the folder") from error
        found = {}
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # withdrawn since it was listed
                found[path.name.removesuffix(_SUFFIX)] = _load(path)
        return found


class FolderAnnouncement:
    """An entry of a ``FolderRegistry``."""

    def __init__(self, path: Path, record: ServerRecord, ttl: float) -> None:
        self._path, self._record, self._ttl = path, record, ttl
        self._beat = 0
        self._withdrawn = False

    def refresh(self, record: ServerRecord | None = None) -> None:
        """Renew the time to live.

        Raises:
            ServerError: the file cannot be written, or the entry was withdrawn.
        """
        if self._withdrawn:
            raise ServerError(f"{self._path}: found a refresh after withdraw(); announce the server again")
        self._record = record or self._record
        self._beat += 1
        # The incarnation is part of the counter: a restarted server may use the same file.
        beat = f"{self._record.incarnation} {self._beat}"
        data = {"record": self._record.as_data(), "ttl": self._ttl, "beat": beat}
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(data), encoding="utf-8")
            temporary.replace(self._path)
        except OSError as error:
            raise ServerError(
                f"{self._path}: cannot write the server's entry: {error}; free or mend the disk"
            ) from error

    def withdraw(self) -> None:
        """Remove the entry, unless a restarted server has taken it over."""
        self._withdrawn = True
        with contextlib.suppress(OSError, ServerError):
            if _load(self._path)["record"]["incarnation"] == self._record.incarnation:
                self._path.unlink()


def _load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {"record": data["record"], "ttl": float(data["ttl"]), "beat": data["beat"]}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServerError(
            f"{path}: found no entry of a server ({type(error).__name__}: {error}); allowed are files that servers "
            "write; delete the file if nobody writes it"
        ) from error


def folder_registry(config: Any, *, run: str, addresses: Sequence[str] = ()) -> FolderRegistry:
    """The target of the ``folder`` registry: ``<nfs_record_root>/<run>/servers/announced``."""
    return FolderRegistry(Path(config.nfs_record_root).expanduser() / run / "servers" / "announced")
