"""Tokens per second of a server."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_SECONDS = 10


class Throughput:
    """The rate over the last seconds. One thread adds, others read.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._seconds: deque[tuple[int, int]] = deque(maxlen=WINDOW_SECONDS + 2)

    def add(self, n_tokens: int) -> None:
        """Count tokens that were generated now."""
        second = int(self._clock())
        n_before = self._seconds.pop()[1] if self._seconds and self._seconds[-1][0] == second else 0
        self._seconds.append((second, n_before + n_tokens))

    @property
    def rate(self) -> float:
        """Tokens per second over the last ``WINDOW_SECONDS``, or since the start."""
        now = self._clock()
        n_tokens = sum(n for second, n in tuple(self._seconds) if second > now - WINDOW_SECONDS)
        return n_tokens / max(1.0, min(WINDOW_SECONDS, now - self._started))
