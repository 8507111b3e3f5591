"""Timing of training steps: the first, in which everything is compiled, and the median of those after it."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gpu.speed.flops import synchronize

WARM_UP, MEASURED = 2, 5


@dataclass(frozen=True)
class Timing:
    """Of repeated calls.

    Attributes:
        seconds: median of a call.
        first: of the first call beyond that: compilation, and memory touched for the first time.
        peak_bytes: most memory allocated on the device; 0 on a CPU.
    """

    seconds: float
    first: float
    peak_bytes: int


def time_calls(call: Callable[[], object], device: str, *, measured: int = MEASURED) -> Timing:
    """Call it ``WARM_UP + measured`` times."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(WARM_UP + measured):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    median = statistics.median(times[WARM_UP:])
    return Timing(median, max(times[0] - median, 0.0), torch.cuda.max_memory_allocated() if device == "cuda" else 0)


def free_memory(device: str) -> int:
    """Give back what is cached; bytes that are free on the device, or any large number on a CPU."""
    gc.collect()
    if device != "cuda":
        return 2**40
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]
