"""Ctrl-C and SIGTERM as a request to stop: the trainer finishes its step and leaves complete files."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

SAME_SIGNAL_SECONDS = 0.5
"""Repeated signals within this time count as one: a rank may get the same signal from the terminal or the cluster,
which signal the whole process group, and from the launcher, which forwards it."""


class StopSignal:
    """A context manager that turns the first SIGINT or SIGTERM into ``requested``, which trainers check between steps.

    The second signal raises ``KeyboardInterrupt`` at once. On exit, the previous handlers are restored. Only the main
    thread can install handlers; in other threads, ``request`` is the only way to stop.

    Args:
        announce: print a message to standard error on the first signal.
        raises: raise on the second signal; otherwise only set ``insisted``.
        same_within: ignore a repetition of the signal within so many seconds of the first.
        clock: returns seconds.
    """

    def __init__(
        self,
        *,
        announce: bool = True,
        raises: bool = True,
        same_within: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._signal: int | None = None
        self._time = 0.0
        self._insisted = False
        self._announce = announce
        self._raises = raises
        self._same_within = same_within
        self._clock = clock
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether the run should stop after this step."""
        return self._signal is not None

    @property
    def number(self) -> int | None:
        """The first signal's number, or ``None``."""
        return self._signal

    @property
    def insisted(self) -> bool:
        """Whether a second signal came: stop without waiting for the step."""
        return self._insisted

    @property
    def exit_code(self) -> int:
        """The exit code of the process: 130 after SIGINT, 143 after SIGTERM, else 0."""
        return 0 if self._signal is None else 128 + self._signal

    def request(self, number: int = signal.SIGINT) -> None:
        """Request a stop, as if this signal had arrived."""
        self._signal = number
        self._time = self._clock()

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None: the handler was not installed from Python, which cannot restore it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if number == self._signal and self._clock() - self._time < self._same_within:
                return
            self._insisted = True
            if self._raises:
                raise KeyboardInterrupt
            return
        self.request(number)
        if self._announce:
            # Not print(): the handler may interrupt one, and buffered streams are not reentrant.
            os.write(
                2,
                f"\n{signal.Signals(number).name}: stopping after this step; the last checkpoint stays intact. "
                "Press Ctrl-C again to stop at once.\n".encode(),
            )
