"""Ends a helper process with the trainer that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

PARENT_CHECK_SECONDS = 0.5
_SET_PARENT_DEATH_SIGNAL = 1
"""``PR_SET_PDEATHSIG`` of Linux's ``prctl``."""


def end_with(parent: int) -> None:
    """Kill this process when ``parent`` ends.

    The thread could not do it alone: a function that hangs in compiled code, such as a regular expression, keeps all
    threads from running. The kernel's signal comes when the *thread* that started this process ends, so the parent
    starts and uses its helper processes in one thread.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="archon-watchdog", daemon=True).start()
