"""Ctrl-C and SIGTERM as a request: the trainer ends the step it is in and leaves whole files behind."""

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
"""A run of several processes may be sent one signal twice: by the terminal or the cluster, which reach the whole group,
and by the launcher, which passes it on. Within this time the same signal is one."""


class StopSignal:
    """A context manager that turns the first SIGINT or SIGTERM into ``requested``, which trainers ask between steps.

    The second one raises ``KeyboardInterrupt`` at once. On leaving, the handlers from before are back. Only the main
    thread may install handlers; elsewhere none are, and ``request`` is the only way to stop.

    Args:
        announce: whether the first signal is answered on standard error.
        raises: whether the second signal raises; otherwise it is only kept, as ``insisted``.
        same_within: the same signal within so many seconds of the first is not a second one.
        clock: gives seconds.
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
        """Whether the run should end after this step."""
        return self._signal is not None

    @property
    def number(self) -> int | None:
        """The first signal's number, or ``None``."""
        return self._signal

    @property
    def insisted(self) -> bool:
        """Whether a second signal came, after which nothing should be waited for."""
        return self._insisted

    @property
    def exit_code(self) -> int:
        """What the process should exit with: 130 after SIGINT, 143 after SIGTERM, 0 without either."""
        return 0 if self._signal is None else 128 + self._signal

    def request(self, number: int = signal.SIGINT) -> None:
        """Ask for the end of the run, as the signal of this number does."""
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
            # None stands for a handler that was not installed from Python, which Python cannot put back.
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
            # Not print: the handler may run in the middle of one, and buffered streams do not bear that.
            os.write(
                2,
                f"\n{signal.Signals(number).name}: stopping after this step; the last checkpoint stays whole. "
                "Press Ctrl-C again to stop at once.\n".encode(),
            )
