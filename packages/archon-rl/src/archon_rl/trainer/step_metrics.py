"""The metrics of a training step: seconds per phase, memory, and means over its optimizer updates."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from archon_core.contracts.engine import StepStats
from archon_engine.profiling.ranges import profiled_range


class PhaseClock:
    """Adds up wall-clock seconds per named phase."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a block as part of ``phase``."""
        start = time.perf_counter()
        try:
            with profiled_range(phase):
                yield
        finally:
            self._seconds[phase] += time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """``time/<phase>`` in seconds, and ``time/step`` for all of them."""
        rows = {f"time/{phase}": seconds for phase, seconds in self._seconds.items()}
        return {**rows, "time/step": sum(self._seconds.values())}


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process held.

    On a CUDA device what torch had allocated there since the last call; on a CPU the resident memory of the process
    since its start.
    """
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def average(updates: Sequence[StepStats]) -> dict[str, float]:
    """Means over the updates, their number, the number of skipped ones, and the last learning rate."""
    metrics: dict[str, float] = {
        "updates": len(updates),
        "skipped_updates": sum(stats.skipped for stats in updates),
    }
    if updates:
        metrics["loss"] = sum(stats.loss for stats in updates) / len(updates)
        metrics["gradient_norm"] = sum(stats.gradient_norm or 0.0 for stats in updates) / len(updates)
        metrics["learning_rate"] = updates[-1].learning_rate or 0.0
        for name in updates[0].metrics:
            metrics[name] = sum(stats.metrics[name] for stats in updates) / len(updates)
    return metrics
