"""Measures when actions run, on the clock of their device."""

from __future__ import annotations

import time

import torch

from archon_core.contracts.pipeline import Action
from archon_pipeline.timeline import TimedAction


class ActionClock:
    """Measures the actions of one step, in seconds since its construction.

    On CUDA it records events in the stream, so measuring does not wait for the device. A wait inside the stream, such
    as for a message, counts as time of the action only if it is issued between ``begin`` and ``end``.

    Args:
        device: where the actions run.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._marks: list[tuple[Action, float | torch.cuda.Event, float | torch.cuda.Event]] = []
        self._zero = self._mark()
        self._begun = self._zero

    def begin(self) -> None:
        """Call when the inputs of the next action have arrived."""
        self._begun = self._mark()

    def end(self, action: Action) -> None:
        """Call when the work of ``action`` has been issued."""
        self._marks.append((action, self._begun, self._mark()))

    def timed(self) -> tuple[TimedAction, ...]:
        """All measured actions, in order. Waits for the device."""
        if self._is_cuda:
            torch.cuda.synchronize()
        return tuple(
            TimedAction(action, self._seconds(start), self._seconds(end)) for action, start, end in self._marks
        )

    def _mark(self) -> float | torch.cuda.Event:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, mark: float | torch.cuda.Event) -> float:
        if isinstance(mark, torch.cuda.Event):
            return self._zero.elapsed_time(mark) / 1000  # type: ignore[union-attr]
        return mark - self._zero  # type: ignore[operator]
