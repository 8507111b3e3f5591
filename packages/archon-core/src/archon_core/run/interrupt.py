"""Ctrl-C and SIGTERM as a request: the trainer ends the step it is in and leaves whole files behind."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """A context manager that turns the first SIGINT or SIGTERM into ``requested``, which trainers ask between steps.

    The second one raises ``KeyboardInterrupt`` at once. On leaving, the handlers from before are back. Only the main
    thread may install handlers; elsewhere none are, and ``request`` is the only way to stop.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether the run should end after this step."""
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        """What the process should exit with: 130 after SIGINT, 143 after SIGTERM, 0 without either."""
        return 0 if self._signal is None else 128 + self._signal

    def request(self, number: int = signal.SIGINT) -> None:
        """Ask for the end of the run, as the signal of this number does."""
        self._signal = number

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
            raise KeyboardInterrupt
        self.request(number)
        # Not print: the handler may run in the middle of one, and buffered streams do not bear that.
        os.write(
            2,
            f"\n{signal.Signals(number).name}: stopping after this step; the last checkpoint stays whole. "
            "Press Ctrl-C again to stop at once.\n".encode(),
        )
