"""Entries of servers with a time to live, in the memory of one process, whose clock alone counts. Pure."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any


def actor_name(prefix: str, run: str) -> str:
    """The name of the actor that holds the entries of a run."""
    return f"{prefix}:{run}"


class Entries:
    """The entries of one run.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: dict[str, tuple[dict[str, Any], float]] = {}
        self._used = clock()
        self._start = uuid.uuid4().hex

    def put(self, id: str, record: Mapping[str, Any], ttl: float) -> None:
        """Add or renew an entry, which expires after ``ttl`` seconds."""
        self._used = self._clock()
        self._entries[id] = (dict(record), self._used + ttl)

    def remove(self, id: str) -> None:
        """Remove an entry. Idempotent."""
        self._used = self._clock()
        self._entries.pop(id, None)

    def list(self) -> tuple[str, dict[str, dict[str, Any]]]:
        """The id of this start, without which a loss of all entries looks like a withdrawal, and the entries."""
        self._used = self._clock()
        self._expire()
        return self._start, {id: record for id, (record, _) in self._entries.items()}

    def idle_seconds(self) -> float:
        """Time since the last call; 0 as long as there are entries."""
        self._expire()
        return 0.0 if self._entries else self._clock() - self._used

    def _expire(self) -> None:
        now = self._clock()
        self._entries = {id: entry for id, entry in self._entries.items() if entry[1] > now}
