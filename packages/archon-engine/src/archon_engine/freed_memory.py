"""Freed memory of a process that trains on a CPU: kept for the next step instead of returned to the system.

A step allocates and frees the same activations as the step before. glibc returns large freed blocks at once: those it
mapped one by one, and the end of its heap. The next step then faults every page in again, and the system clears it
first, which took a tenth of the time of a step. Here large blocks come from the heap, and the heap does not shrink: the
process stays at its peak, which grows by a few percent, because freed blocks of one size also serve smaller ones.

The settings are process-wide, and are never reset.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

from archon_core.contracts.decisions import Decision

# Parameters of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
SETTINGS: Mapping[str, tuple[int, int]] = {
    "M_TRIM_THRESHOLD": (M_TRIM_THRESHOLD, -1),  # never
    "M_MMAP_MAX": (M_MMAP_MAX, 0),  # no threshold of sizes: glibc allows none above 32 MiB
}

VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")
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
    # musl has the function, but it accepts nothing.
    if mallopt is None or not all(mallopt(parameter, value) for parameter, value in SETTINGS.values()):
        return []
    effect = ", ".join(f"{name}={value}" for name, (_, value) in SETTINGS.items())
    return [Decision(option, "true", effect, "later steps use the memory again without faulting its pages in")]
