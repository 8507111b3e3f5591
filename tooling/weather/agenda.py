"""Things to do later, in one thread."""

from __future__ import annotations

import time
from collections.abc import Callable


class Agenda:
    """Callables with times."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, Callable[[], None]]] = []

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Call ``do`` in some seconds."""
        self._entries.append((time.monotonic() + seconds, do))

    def run_due(self) -> None:
        """Call whatever is due."""
        now = time.monotonic()
        due = sorted((entry for entry in self._entries if entry[0] <= now), key=lambda entry: entry[0])
        self._entries = [entry for entry in self._entries if entry[0] > now]
        for _, do in due:
            do()

    def run_all(self) -> None:
        """Call everything now, also what is added meanwhile."""
        while self._entries:
            self._entries.pop(0)[1]()
