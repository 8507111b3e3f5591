"""How a process that a trainer starts behaves: it ends with the trainer, and leaves signals to it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

from archon_rl.rewards.messages import TRAINERS_SIGNALS

PARENT_CHECK_SECONDS = 0.5
_SET_PARENT_DEATH_SIGNAL = 1
"""``PR_SET_PDEATHSIG`` of Linux's ``prctl``."""


def end_with(trainer: int) -> None:
    """Kill this process when the trainer ends.

    The thread could not do it alone: a function that hangs in compiled code, such as a regular expression, keeps all
    threads from running. The kernel's signal comes when the *thread* that started this process ends, so the trainer
    starts and uses reward processes in one thread.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)

    def watch() -> None:
        while os.getppid() == trainer:
            time.sleep(PARENT_CHECK_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="archon-reward-watchdog", daemon=True).start()


def leave_signals_to_trainer() -> None:
    """Ignore the signals that the process started with blocked.

    Processes that the reward starts get the default handlers: a handler of Python does not survive ``exec``, and is
    removed after ``fork``.
    """
    previous = {number: signal.signal(number, lambda number, frame: None) for number in TRAINERS_SIGNALS}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TRAINERS_SIGNALS)

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    os.register_at_fork(after_in_child=restore)
