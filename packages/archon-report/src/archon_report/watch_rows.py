"""The terminal view of many runs: one row each, where their panels would not fit on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from archon_report.run import Run
from archon_report.watch_view import Watched, clock, draw, number, progress, remarks, seconds_left, style_of

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

COLUMNS = (("reward", "reward"), ("loss", "loss"), ("tokens/s", "tokens_per_second"), ("stale", "staleness"))
"""Heading, metric."""


def draw_fitting(runs: Sequence[Watched], console: Console) -> RenderableType:
    """Panels; rows if there are several runs and the terminal is too low for their panels, whose end it would cut."""
    panels = draw(runs, console.width)
    if len(runs) > 1 and console.is_terminal and len(console.render_lines(panels)) > console.height:
        return draw_rows(runs)
    return panels


def draw_rows(runs: Sequence[Watched]) -> RenderableType:
    """A table of runs, and remarks below it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("run", overflow="fold")
    for heading in ("step", *(heading for heading, _ in COLUMNS), "left"):
        table.add_column(heading, justify="right", no_wrap=True)
    below = []
    for watched in runs:
        name = watched.run.name if watched.run else str(watched.folder)
        table.add_row(*(Text(name), *_cells(watched.run)), style=style_of(watched.run) if watched.run else "")
        below += [Text(f"{name}: {remark}", "yellow") for remark in remarks(watched)]
    return Group(table, *below)


def _cells(run: Run | None) -> list[str]:
    if run is None:
        return []
    values = [number(run.series[metric].last) if metric in run.series else "" for _, metric in COLUMNS]
    left = seconds_left(run)
    ending = run.state.kind if run.state.kind != "running" else "" if left is None else clock(left)
    return [progress(run), *values, ending]
