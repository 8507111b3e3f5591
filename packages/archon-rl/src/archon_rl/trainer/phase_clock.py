"""Wall-clock time per phase of a step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class PhaseClock:
    """Adds up wall-clock seconds per named phase."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a block as part of ``phase``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] += time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """``time/<phase>`` in seconds, and ``time/step`` for all of them."""
        rows = {f"time/{phase}": seconds for phase, seconds in self._seconds.items()}
        return {**rows, "time/step": sum(self._seconds.values())}
