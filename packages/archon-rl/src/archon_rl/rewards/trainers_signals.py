"""Signals of a process that a trainer starts, such as for rewards."""

from __future__ import annotations

import os
import signal

from archon_rl.rewards.messages import TRAINERS_SIGNALS


def leave_signals_to_trainer() -> None:
    """Ignore the signals that the process started with blocked.

    Processes that this one starts get the default handlers: a handler of Python does not survive ``exec``, and is
    removed after ``fork``.
    """
    previous = {number: signal.signal(number, lambda number, frame: None) for number in TRAINERS_SIGNALS}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TRAINERS_SIGNALS)

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    os.register_at_fork(after_in_child=restore)
