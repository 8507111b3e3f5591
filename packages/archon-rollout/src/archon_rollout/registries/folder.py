"""The ``folder`` registry: one file per server in a folder that all hosts share.

A file holds the record, the time to live and a counter that every refresh raises. A reader compares the counter with
what it saw before, by its own clock: an entry expires when the counter has stood still for its time to live. So the
clocks of hosts and file servers may differ. A reader that starts takes every file for alive until then, and so does one
that could not read: servers could not write either. Readers delete files that expired long ago; a server that lives
writes its file again. A damaged file hides no other entry: its last known record stays until the file is deleted,
``REMOVAL_SECONDS`` later.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from archon_core.contracts.server_registry import RegistryChange
from archon_core.errors import ServerError
from archon_core.serving.change_log import ChangeLog
from archon_core.serving.record import ServerRecord

logger = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SUFFIX = ".server.json"

REMOVAL_SECONDS = 60.0
"""Time after an entry's expiry, or after its damage was seen, at which a reader deletes its file."""


@dataclass(frozen=True)
class _Entry:
    """The content of a file."""

    record: ServerRecord
    ttl: float
    beat: str


class _DamagedError(ServerError):
    """A file without an entry."""


@dataclass(frozen=True)
class _Seen:
    """What a reader knows of a file.

    Attributes:
        beat: its counter; ``None`` while the file is damaged.
        since: when the reader saw that for the first time.
        record: the record that it lists; ``None`` if it lists none.
    """

    beat: str | None
    since: float
    record: ServerRecord | None


class FolderRegistry:
    """Entries are files; implements ``contracts.server_registry.ServerRegistry``.

    Args:
        folder: created if it does not exist.
        clock: seconds, never going back.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._reported: set[str] = set()
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
        """All entries that have not expired. Logs files that it cannot read, once each.

        Raises:
            ServerError: the folder cannot be read.
        """
        try:
            found = self._read()
        except ServerError:
            self._was_unreadable = True
            raise
        now = self._clock()
        if self._was_unreadable:
            self._seen = {id: replace(seen, since=now) for id, seen in self._seen.items()}
            self._was_unreadable = False
        self._seen = {id: self._judge(id, entry, now) for id, entry in found.items()}
        return {id: seen.record for id, seen in self._seen.items() if seen.record is not None}

    def _judge(self, id: str, found: _Entry | ServerError, now: float) -> _Seen:
        """What is now known of a file; deletes it if it is old."""
        before = self._seen.get(id, _Seen("", now, None))
        if isinstance(found, _Entry):
            self._reported.discard(id)
            since = before.since if found.beat == before.beat else now
            is_alive, end = now < since + found.ttl, since + found.ttl + REMOVAL_SECONDS
            seen = _Seen(found.beat, since, found.record if is_alive else None)
        else:
            if id not in self._reported:
                logger.warning("%s", found)
                self._reported.add(id)
            if not isinstance(found, _DamagedError):  # says nothing about the entry, however long it lasts
                return replace(before, since=now)
            seen = before if before.beat is None else _Seen(None, now, before.record)
            end = seen.since + REMOVAL_SECONDS
        if now >= end:
            with contextlib.suppress(OSError):
                self._path(id).unlink()
            return replace(seen, record=None)
        return seen

    def changes(self, since: int) -> tuple[int, Sequence[RegistryChange]]:
        """The changes after a cursor, and the next cursor. Raises ServerError as ``list`` does."""
        return self._log.changes(self.list(), since)

    def close(self) -> None:
        """Nothing to free."""

    def _path(self, id: str) -> Path:
        return self._folder / f"{id}{_SUFFIX}"

    def _read(self) -> dict[str, _Entry | ServerError]:
        """The content of every file, or why it cannot be read."""
        try:
            if self._existed and not self._folder.exists():
                # An unmounted share is no news about servers. Before the first entry there may be no folder yet.
                raise ServerError(
                    f"server registry {self._folder}: found no folder, and it had entries; repair the folder"
                )
            paths = sorted(path for path in self._folder.iterdir() if path.name.endswith(_SUFFIX))
            self._existed = True
        except FileNotFoundError:
            paths = []
        except OSError as error:
            raise ServerError(f"server registry {self._folder}: cannot list it: {error}; repair the folder") from error
        found: dict[str, _Entry | ServerError] = {}
        for path in paths:
            id = path.name.removesuffix(_SUFFIX)
            try:
                found[id] = _load(path)
            except FileNotFoundError:
                pass  # withdrawn since it was listed
            except ServerError as error:
                found[id] = error
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
                f"{self._path}: cannot write the server's entry: {error}; free or repair the disk"
            ) from error

    def withdraw(self) -> None:
        """Remove the entry, unless a restarted server has taken it over."""
        self._withdrawn = True
        with contextlib.suppress(OSError, ServerError):
            if _load(self._path).record.incarnation == self._record.incarnation:
                self._path.unlink()


def _load(path: Path) -> _Entry:
    """The entry in a file.

    Raises:
        FileNotFoundError: there is none.
        ServerError: the file cannot be read, or is damaged.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return _Entry(ServerRecord.from_data(data["record"]), float(data["ttl"]), str(data["beat"]))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ServerError(f"{path}: cannot read the server's entry: {error}; make the file readable") from error
    except (ValueError, KeyError, TypeError, ServerError) as error:
        raise _DamagedError(
            f"{path}: found no entry of a server ({type(error).__name__}: {error}); allowed are files that servers "
            f"write; readers delete the file after {REMOVAL_SECONDS:g} s unless a server writes it again"
        ) from error


def folder_registry(config: Any, *, run: str, addresses: Sequence[str] = ()) -> FolderRegistry:
    """The target of the ``folder`` registry: ``<nfs_record_root>/<run>/servers/announced``."""
    return FolderRegistry(Path(config.nfs_record_root).expanduser() / run / "servers" / "announced")
