"""Notices when counters stop rising, by the reader's own clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable


class Silence:
    """Watches beats.

    Args:
        limit: seconds without a new beat after which something counts as silent.
        clock: seconds, never going back.
    """

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = limit, clock
        self._seen: dict[Hashable, tuple[object, float, float]] = {}  # beat, since when, time of the last look

    def of(self, who: Hashable, beat: object) -> bool:
        """Whether ``who`` has been silent for the limit; ``beat`` is its counter, or ``None`` before the first.

        A reader that has not looked for the limit itself cannot tell: SLURM suspends all machines of a job, which
        wake one after another.
        """
        now = self._clock()
        last, since, looked = self._seen.get(who, (object(), now, now))
        if last != beat or now - looked >= self._limit:
            since = now
        self._seen[who] = (beat, since, now)
        return now - since >= self._limit
