"""The lock file of a run folder: whether a process writes to the run. Held by archon-train."""

from __future__ import annotations

from pathlib import Path

LOCK = ".lock"
"""In the run folder; names its last holder. Never removed: a removed file could be locked twice."""


def is_held(run_folder: Path) -> bool | None:
    """Whether a process writes to the run; ``None`` if the system cannot tell."""
    try:
        import fcntl
    except ImportError:  # Windows has other locks
        return None
    try:
        with (run_folder / LOCK).open("r", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:  # some network file systems have no locks
        return None
    return False
