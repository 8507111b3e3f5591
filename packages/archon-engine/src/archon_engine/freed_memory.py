"""Freed memory of a process that trains on a CPU: kept for the next step instead of returned to the system.

A step allocates and frees the same activations as the step before. glibc returns large freed blocks at once: those it
mapped one by one, and the end of its heap. The next step then faults every page in again, and the system clears it
first, which took a tenth of the time of a step of a small model. With both of glibc's thresholds raised, blocks up to
32 MiB, glibc's limit, come from a heap that does not shrink. The peak of resident memory stays the same.

The thresholds are process-wide, and are never reset.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

from archon_core.contracts.decisions import Decision

# Parameters of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_HEAP_BLOCK = 32 * 2**20
"""glibc refuses a larger threshold: half of the largest heap of a thread (``HEAP_MAX_SIZE``)."""
NEVER_TRIM = -1

VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""With one of these, the user has tuned glibc; nothing is changed then."""


def keep_freed_memory(option: str, environment: Mapping[str, str] = os.environ) -> list[Decision]:
    """Let this process keep the memory that it frees.

    Args:
        option: dotted name of the engine's option.

    Returns:
        What was set, as a decision about ``option``; none without glibc.
    """
    for variable in VARIABLES:
        if variable in environment:
            reason = f"{variable} is in the environment, and has precedence"
            return [Decision(option, "true", "unchanged", reason)]
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return []
    accepted = mallopt(M_TRIM_THRESHOLD, NEVER_TRIM) and mallopt(M_MMAP_THRESHOLD, LARGEST_HEAP_BLOCK)
    if not accepted:  # musl's mallopt does nothing
        return []
    effect = f"M_TRIM_THRESHOLD={NEVER_TRIM} (never), M_MMAP_THRESHOLD={LARGEST_HEAP_BLOCK}"
    return [Decision(option, "true", effect, "later steps use the memory again without faulting its pages in")]
