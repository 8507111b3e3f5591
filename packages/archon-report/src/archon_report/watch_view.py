"""The terminal view of runs: one panel each, side by side where there is room."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archon_report.run import Run
from archon_report.series import (
    HELD_OUT_REWARD,
    PHASE,
    PROFILED,
    STEP_TIME,
    Row,
    Series,
    number,
    phase_name,
    unprofiled,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

BLOCKS = "▁▂▃▄▅▆▇█"
NOT_FINITE = "!"
RECENT = 20
"""Steps that the time left is estimated from."""

MOST_SERVERS = 4
"""Most servers that a panel lists."""

WIDTH = 56
"""Columns of a panel that has others beside it."""

WIDE = 72
"""Columns of a panel that has a line to itself."""

SHOWN: Mapping[str, str] = {
    "reward": "reward",
    HELD_OUT_REWARD: "held-out reward",
    r"eval/(pass@\d+)": "held-out {}",
    "eval/loss": "held-out loss",
    "loss": "loss",
    "gradient_norm": "gradient norm",
    "approx_kl": "KL",
    "clip_fraction": "clip fraction",
    "entropy": "entropy",
    "completion_tokens": "completion tokens",
    "tokens_per_second": "tokens/s",
    "memory/peak_gb": "peak memory, GB",
    "staleness": "staleness",
}
"""Pattern of a metric -> label, in order; a metric that the run lacks is left out."""


@dataclass(frozen=True)
class Watched:
    """What is known of a run.

    Attributes:
        folder: its path.
        run: as last read; ``None`` before it starts.
        note: what is unusual: it is waited for, was resumed, or cannot be read.
    """

    folder: Path
    run: Run | None = None
    note: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether nobody trains it any more."""
        return self.run is not None and self.run.state.kind != "running"

    def after(self, found: Run | str) -> Watched:
        """This run at the next look; ``found`` is the run, or why it cannot be read."""
        if isinstance(found, str):
            return replace(self, note=found)
        note = self.note if self.run is not None and "resumed" in self.note else ""
        if self.run is not None and found.step < self.run.step:
            note = f"resumed: steps {found.step + 1} to {self.run.step} were dropped"
        elif self.run is not None and found.step > self.run.step and note:
            note = ""
        return replace(self, run=found, note=note)


def sparkline(values: Sequence[float], width: int) -> str:
    """The last values as bars of eight heights; ``!`` for values that are not finite.

    >>> sparkline([0, 1, 2, 3.5, float("nan")], 5)
    '▁▃▅█!'
    """
    shown = list(values)[-width:]
    finite = [value for value in shown if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    return "".join(
        NOT_FINITE
        if not math.isfinite(value)
        else BLOCKS[round((value - low) / (high - low) * (len(BLOCKS) - 1)) if high > low else 0]
        for value in shown
    )


def seconds_left(run: Run) -> float | None:
    """The time that the remaining steps need at the speed of the recent ones; ``None`` if unknown.

    Steps that a profiler slowed count only if there are no others.
    """
    recent = [row[STEP_TIME] + row.get("time/eval", 0.0) for row in unprofiled(_timed(run))][-RECENT:]
    if run.total is None or not recent or not all(map(math.isfinite, recent)):
        return None
    return max(0, run.total - run.step) * sum(recent) / len(recent)


def _timed(run: Run) -> list[Row]:
    return [row for row in run.rows if STEP_TIME in row]


def draw(runs: Sequence[Watched], width: int) -> RenderableType:
    """The panels of all runs.

    Args:
        runs: to show.
        width: of the terminal.
    """
    from rich.columns import Columns

    side_by_side = len(runs) > 1 and width >= 2 * WIDTH
    panel = WIDTH if side_by_side else min(width, WIDE)
    return Columns([draw_run(run, panel) for run in runs], padding=(0, 0))


def draw_run(watched: Watched, width: int) -> RenderableType:
    """One panel."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    run = watched.run
    if run is None:
        return Panel(Text(watched.note or "waiting"), title=Text(str(watched.folder)), width=width, title_align="left")
    table = Table.grid(padding=(0, 1))
    table.add_column(max_width=18)
    table.add_column(justify="right", width=10)
    table.add_column()
    table.add_row("step", progress(run), Text(_left(run)))
    for label, series in _shown(run):
        table.add_row(label, number(series.last), Text(sparkline(series.values, max(8, width - 35)), "cyan"))
    for label, value in _more(run):
        table.add_row(label, "", Text(value))
    parts: list[Any] = [table]
    parts += [Text(text, "yellow") for text in remarks(watched)]
    from rich.console import Group

    state, style = run.state, style_of(run)
    return Panel(
        Group(*parts),
        title=Text(run.name, "bold"),
        title_align="left",
        subtitle=Text(state.text, style),
        subtitle_align="left",
        width=width,
        border_style=style,
    )


def style_of(run: Run) -> str:
    """The colour of its state."""
    return {"running": "blue", "finished": "green"}.get(run.state.kind, "red")


def remarks(watched: Watched) -> list[str]:
    """What is unusual about a run, as sentences."""
    run = watched.run
    if run is None:
        return [watched.note] if watched.note else []
    problems = [f"cannot read {problem}" for problem in run.problems]
    ended = run.starts[-1].error if run.starts and run.state.kind == "failed" else ""
    return [text for text in (watched.note, *problems, *_not_finite(run), ended) if text]


def progress(run: Run) -> str:
    """The steps that are done, of how many."""
    return str(run.step) if run.total is None else f"{run.step}/{run.total}"


def _shown(run: Run) -> list[tuple[str, Series]]:
    """The labels and the values of the metrics in the panel of a run."""
    return [
        (label.format(*match.groups()), run.series[name])
        for pattern, label in SHOWN.items()
        for name in run.series
        if (match := re.fullmatch(pattern, name))
    ]


def _left(run: Run) -> str:
    """The time left, or why it is unknown."""
    if run.state.kind != "running":
        return ""
    if run.total is None:
        return "time left: known when training begins" if run.step == 0 else "time left: no number of steps recorded"
    left = seconds_left(run)
    if left is None:
        return "time left: known after the first step" if run.step == 0 else "time left: no times of steps recorded"
    slowed = all(row.get(PROFILED) for row in _timed(run))
    return f"{clock(left)} left" + (", from profiled steps" if slowed else "")


def clock(seconds: float) -> str:
    """A duration as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _more(run: Run) -> list[tuple[str, str]]:
    """The time of the last step by phase, and the versions of servers."""
    row = next((row for row in reversed(run.rows) if STEP_TIME in row), {})
    phases = {
        phase_name(name): value
        for name, value in row.items()
        if name.startswith(PHASE) and name not in (STEP_TIME, "time/eval") and value > 0.01 * row[STEP_TIME]
    }
    found = []
    if phases:
        total = sum(phases.values())
        found.append(("time", ", ".join(f"{name} {value / total:.0%}" for name, value in phases.items())))
    servers = {name.removeprefix("server_version/"): int(v) for name, v in row.items() if name.startswith("server_v")}
    if len(servers) > MOST_SERVERS:
        oldest, newest = min(servers.values()), max(servers.values())
        versions = f"version {newest}" if oldest == newest else f"versions {oldest} to {newest}"
        found.append(("servers", f"{len(servers)}, {versions}"))
    elif servers:
        found.append(("servers", ", ".join(f"{name} version {version}" for name, version in servers.items())))
    if row.get("publish/failed"):
        found.append(("servers", f"{row['publish/failed']:.0f} did not take the last weights"))
    return found


def _not_finite(run: Run) -> list[str]:
    """Metrics whose last value is not finite, and updates that were skipped for that."""
    found = [f"{name} is not finite" for name, series in run.series.items() if not math.isfinite(series.last)]
    skipped = run.series.get("skipped_updates")
    if skipped is not None and (steps := [s for s, v in zip(skipped.steps, skipped.values, strict=True) if v]):
        found.append(f"updates were skipped, last at step {steps[-1]}")
    return found
