"""File descriptors for connections: a client has one per sample, thousands in a large step."""

from __future__ import annotations

import errno
import resource

ENOUGH = 65536
"""Limit of descriptors that suffices."""

EXHAUSTED = (errno.EMFILE, errno.ENFILE)
"""Error numbers of a process, or a machine, without a free descriptor."""


def raise_descriptor_limit() -> int:
    """Raise this process's soft limit of open files, which is often 1024, towards its hard limit; returns it.

    Processes that it starts inherit the limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    has, most = (ENOUGH if limit == resource.RLIM_INFINITY else limit for limit in (soft, hard))
    wanted = min(ENOUGH, most)
    if has >= wanted:
        return has
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # a kernel may allow less than its hard limit says
        return has
    return wanted


def connection_limit() -> int:
    """The number of connections that a client may have open; other descriptors of the process have as much room.
    Raises the limit of open files."""
    return max(1, raise_descriptor_limit() // 2)
