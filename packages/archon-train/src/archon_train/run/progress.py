"""Progress display: a live line in a terminal, plain lines in a log file."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as LiveBar
from rich.text import Text

RECENT_STEPS = 20
"""Number of recent steps to average for the remaining time; the first steps of a run are slow."""


class Progress:
    """Shows the progress of a run. A context manager; call ``start`` for each phase of the run.

    Args:
        console: output; ``None`` for standard output.
        every: without a terminal, print every so many steps, and the last one.
        clock: returns seconds.
    """

    def __init__(
        self, console: Console | None = None, *, every: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console or Console()
        self._every = max(1, every)
        self._clock = clock
        self._live: LiveBar | None = None
        self._task: TaskID | None = None
        self._label = "step"
        self._total: int | None = None
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self._previous_step = 0
        self._previous_time = clock()

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            # No auto-refresh thread: ranks may be forked, and a fork copies the thread's locks but not the thread.
            self._live = LiveBar(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                console=self._console,
                auto_refresh=False,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def start(self, total: int | None, *, completed: int = 0, label: str = "step") -> None:
        """Start a phase.

        Args:
            total: its number of steps; ``None`` if unknown.
            completed: steps already done, in a resumed run.
            label: name of a step: ``step``, ``warm start``.
        """
        self._label = label
        self._total = total
        self._recent.clear()
        self._previous_step = completed
        self._previous_time = self._clock()
        if self._live is not None:
            if self._task is not None:
                self._live.remove_task(self._task)
            self._task = self._live.add_task(label, total=total, completed=completed)
            self._live.refresh()

    def update(self, step: int, *, n_tokens: int = 0, **values: float) -> None:
        """Show progress after a step.

        Args:
            step: steps done, including ``completed``.
            n_tokens: tokens since the last update; 0 to omit the speed.
            values: metrics to show in this order, such as ``reward=0.5, loss=1.2``.
        """
        now = self._clock()
        seconds = now - self._previous_time
        steps = step - self._previous_step
        if steps > 0:
            self._recent.append(seconds / steps)
        self._previous_step, self._previous_time = step, now
        line = format_step(
            step,
            self._total,
            values,
            label=self._label,
            tokens_per_second=n_tokens / seconds if n_tokens and seconds > 0 else None,
            seconds_left=self._seconds_left(step),
        )
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=step, description=line)
            self._live.refresh()
        elif step % self._every == 0 or step == self._total:
            self.note(line)

    def note(self, text: str) -> None:
        """Print a line; in a terminal it stands above the live one."""
        self._console.print(Text(text), soft_wrap=True)

    def _seconds_left(self, step: int) -> float | None:
        if self._total is None or not self._recent:
            return None
        return max(0, self._total - step) * sum(self._recent) / len(self._recent)


class NoProgress(Progress):
    """Shows nothing: for ranks other than the first."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True, force_terminal=False))


def format_step(
    step: int,
    total: int | None,
    values: Mapping[str, float],
    *,
    label: str = "step",
    tokens_per_second: float | None = None,
    seconds_left: float | None = None,
) -> str:
    """One line: ``step 12/100  reward 0.531  loss 1.234  12.3k tokens/s  0:01:23 left``."""
    parts = [f"{label} {step}" if total is None else f"{label} {step}/{total}"]
    parts += [f"{name} {value:.4g}" for name, value in values.items()]
    if tokens_per_second is not None:
        speed = f"{tokens_per_second / 1000:.1f}k" if tokens_per_second >= 1000 else f"{tokens_per_second:.0f}"
        parts.append(f"{speed} tokens/s")
    if seconds_left is not None:
        minutes, seconds = divmod(round(seconds_left), 60)
        hours, minutes = divmod(minutes, 60)
        parts.append(f"{hours}:{minutes:02d}:{seconds:02d} left")
    return "  ".join(parts)
