"""Processor time where processes that sample share a machine with a trainer."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

NICENESS = 10
"""Steps below the trainer's priority. A process gets about a tenth of the processor time of one ten steps above it, and
all that the other leaves."""


def put_behind_caller(pid: int) -> None:
    """Let the caller have a processor before process ``pid`` and what that starts. Call it right after the start.

    Sampling that is ahead of training must not slow the trainer down. Sampling that is behind loses nothing, because
    a trainer that waits for a batch needs no processor.
    """
    niceness = min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
    with contextlib.suppress(OSError):  # it has ended
        os.setpriority(os.PRIO_PROCESS, pid, niceness)
    # Linux may weigh sessions against each other instead of processes: sched(7), "The autogroup feature".
    with contextlib.suppress(OSError):
        if os.getsid(pid) == pid:
            Path(f"/proc/{pid}/autogroup").write_text(str(niceness), encoding="ascii")
