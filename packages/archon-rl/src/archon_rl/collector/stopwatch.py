"""``Stopwatch``: adds up the time in which something goes on."""

from __future__ import annotations

import time
from collections.abc import Callable


class Stopwatch:
    """Stopped at first.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self._seconds = 0.0

    def run(self, runs: bool) -> None:
        """Run from now on, or stop. Idempotent."""
        if runs and self._since is None:
            self._since = self._clock()
        elif not runs and self._since is not None:
            self._seconds += self._clock() - self._since
            self._since = None

    def lap(self) -> float:
        """The seconds in which it ran since the last call."""
        runs = self._since is not None
        self.run(False)
        self.run(runs)
        seconds, self._seconds = self._seconds, 0.0
        return seconds
