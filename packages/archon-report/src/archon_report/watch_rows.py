"""The terminal view of many runs: one row each, where their panels would not fit on the screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from archon_report.run import Run
from archon_report.series import number
from archon_report.watch_view import Watched, clock, draw, progress, remarks, seconds_left, style_of

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

COLUMNS = (("reward", "reward"), ("loss", "loss"), ("tokens/s", "tokens_per_second"), ("stale", "staleness"))
"""Heading, metric."""

FIRST = ("failed", "running", "stopped", "interrupted", "waiting", "finished")
"""States in the order of their rows where the terminal is too low for all runs."""


def draw_fitting(runs: Sequence[Watched], console: Console) -> RenderableType:
    """All runs if the terminal has enough lines, otherwise the ones that matter most, and how many others there are."""
    view = draw_whole(runs, console)
    if len(runs) == 1 or _fits(view, console):
        return view
    ordered = sorted(runs, key=lambda watched: FIRST.index(_state(watched)))
    # By bisection: drawing hundreds of runs hundreds of times would take longer than the time between two looks.
    n_shown, too_many = 1, len(runs)
    while too_many - n_shown > 1:
        middle = (n_shown + too_many) // 2
        if _fits(_draw_first(ordered, middle), console):
            n_shown = middle
        else:
            too_many = middle
    return _draw_first(ordered, n_shown)


def draw_whole(runs: Sequence[Watched], console: Console) -> RenderableType:
    """Panels; rows if there are several runs and the terminal is too low for their panels."""
    panels = draw(runs, console.width)
    return panels if len(runs) == 1 or _fits(panels, console) else draw_rows(runs)


def _fits(view: RenderableType, console: Console) -> bool:
    return not console.is_terminal or len(console.render_lines(view)) <= console.height


def _draw_first(runs: Sequence[Watched], n_shown: int) -> RenderableType:
    """The first rows, and how many more there are of each state."""
    from rich.console import Group
    from rich.text import Text

    rest = Counter(_state(watched) for watched in runs[n_shown:])
    states = ", ".join(f"{rest[state]} {state}" for state in FIRST if rest[state])
    return Group(draw_rows(runs[:n_shown], one_line=True), Text(f"and {rest.total()} more: {states}"))


def _state(watched: Watched) -> str:
    return watched.run.state.kind if watched.run else "waiting"


def draw_rows(runs: Sequence[Watched], *, one_line: bool = False) -> RenderableType:
    """A table of runs, and remarks below it.

    Args:
        runs: to show.
        one_line: the remarks about a run take one line, which is cut at its end.
    """
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
        found = remarks(watched)
        if one_line and found:
            # How a run ended is the last remark, and would be cut.
            text = " ".join(f"{name}: {'; '.join(reversed(found))}".split())
            below.append(Text(text, "yellow", no_wrap=True, overflow="ellipsis"))
        elif not one_line:
            below += [Text(f"{name}: {remark}", "yellow") for remark in found]
    return Group(table, *below)


def _cells(run: Run | None) -> list[str]:
    if run is None:
        return []
    values = [number(run.series[metric].last) if metric in run.series else "" for _, metric in COLUMNS]
    left = seconds_left(run)
    ending = run.state.kind if run.state.kind != "running" else "" if left is None else clock(left)
    return [progress(run), *values, ending]
