"""When actions run, on the device where they do."""

from __future__ import annotations

import time

import torch

from archon_core.contracts.pipeline import Action
from archon_pipeline.timeline import TimedAction


class ActionClock:
    """Times the actions of one step, from when it is made.

    On a CUDA device it marks places in the stream, so that timing waits for nothing; what an action waits for in the
    stream, such as a message, counts as its own time only if it comes between ``begin`` and ``end``.

    Args:
        device: where the actions run.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._marks: list[tuple[Action, float | torch.cuda.Event, float | torch.cuda.Event]] = []
        self._zero = self._mark()
        self._begun = self._zero

    def begin(self) -> None:
        """What the next action needs is there."""
        self._begun = self._mark()

    def end(self, action: Action) -> None:
        """The action is done."""
        self._marks.append((action, self._begun, self._mark()))

    def timed(self) -> tuple[TimedAction, ...]:
        """All actions so far, in seconds. Waits for the device."""
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
