"""Sampling beside training: staleness, who waits for whom, dropped groups, versions of servers, publication times."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from archon_core.page.charts import draw_table
from archon_core.page.parts import remark, tiles
from archon_report.series import STEP_TIME, Row, Split, split_of
from archon_report.table import AGE, DROPPED, STALE, TRAINED, VERSION

WAITED, IDLE, PUBLISHED = "collector/waited_seconds", "collector/server_idle", "publish/seconds"
PHASES = ("prepare", "transfer", "verify", "commit", "canary")
"""Phases of a publication, one after the other."""


@dataclass(frozen=True)
class Chart:
    """Areas over steps that add up.

    Attributes:
        name: in the data of the page.
        title: for readers.
        unit: of the values.
        split: the areas.
    """

    name: str
    title: str
    unit: Literal["seconds", "share", "count"]
    split: Split


def charts_of(rows: Sequence[Row]) -> list[Chart]:
    """The charts of a run; none of a run that samples and trains in one process."""
    steps = [row for row in rows if STEP_TIME in row]
    waiting = [row for row in steps if WAITED in row]
    served = [row for row in steps if IDLE in row]
    ages = sorted({int(name.removeprefix(AGE)) for row in steps for name in row if name.startswith(AGE)})
    aged = [row for row in steps if TRAINED in row]
    reasons = sorted({name.removeprefix(DROPPED) for row in waiting for name in row if name.startswith(DROPPED)})
    phases = [phase for phase in PHASES if any(f"publish/{phase}_s" in row for row in steps)]
    drawn = [
        Chart(
            "ages",
            "Trained tokens by staleness",
            "share",
            split_of(aged, {_steps(age): lambda row, age=age: row.get(f"{AGE}{age}", 0.0) for age in ages}),
        ),
        Chart(
            "trainer",
            "Time of the trainer",
            "seconds",
            split_of(
                waiting,
                {
                    "works": lambda row: max(0.0, row[STEP_TIME] - row[WAITED]),
                    "waits for samples": lambda row: row[WAITED],
                },
            ),
        ),
        Chart(
            "servers",
            "Time of the servers",
            "share",
            split_of(served, {"sample": lambda row: 1 - row[IDLE], "wait for requests": lambda row: row[IDLE]}),
        ),
        Chart(
            "dropped",
            "Dropped groups by reason",
            "count",
            split_of(
                waiting,
                {
                    reason.replace("_", " "): lambda row, key=f"{DROPPED}{reason}": row.get(key, 0.0)
                    for reason in reasons
                }
                | {"stale": lambda row: row.get(STALE, 0.0)},
            ),
        ),
        Chart(
            "publication",
            "Publication of weights",
            "seconds",
            split_of(
                [row for row in steps if PUBLISHED in row],
                {phase: lambda row, key=f"publish/{phase}_s": row.get(key, 0.0) for phase in phases},
            ),
        ),
    ]
    return [chart for chart in drawn if any(map(any, chart.split.parts.values()))]


def _steps(age: int) -> str:
    return f"{age} step" if age == 1 else f"{age} steps"


def draw_asynchrony(rows: Sequence[Row], place: int) -> Iterator[str]:
    """The section of one run.

    Args:
        rows: of its metrics.
        place: its number on the page.
    """
    steps = [row for row in rows if STEP_TIME in row]
    if facts := _facts(steps):
        yield tiles(facts)
    if charts := charts_of(rows):
        figures = "".join(
            f'<div><h4>{escape(chart.title)}</h4><figure class="split" data-run="{place}" data-chart="{chart.name}">'
            "</figure></div>"
            for chart in charts
        )
        yield f'<div class="grid">{figures}</div>'
    if WAITED in (steps[-1] if steps else {}) and not any(chart.name == "dropped" for chart in charts):
        yield remark("No group was dropped.")
    yield from _versions(steps)


def _facts(steps: Sequence[Row]) -> dict[str, str]:
    facts = {}
    if trained := sum(row.get(TRAINED, 0.0) for row in steps):
        aged = sum(
            int(name.removeprefix(AGE)) * share * row.get(TRAINED, 0.0)
            for row in steps
            for name, share in row.items()
            if name.startswith(AGE)
        )
        facts["staleness per token, mean"] = f"{aged / trained:.2f}"
        facts["staleness, largest"] = f"{max(row.get('staleness_max', 0.0) for row in steps):.0f}"
    if waiting := [row for row in steps if WAITED in row]:
        waited, whole = sum(row[WAITED] for row in waiting), sum(row[STEP_TIME] for row in waiting)
        facts["trainer waits"] = f"{waited / whole:.0%} of its time" if whole else ""
        dropped = sum(
            value for row in waiting for name, value in row.items() if name.startswith(DROPPED) or name == STALE
        )
        facts["dropped groups"] = f"{dropped:.0f}"
    if idle := [row[IDLE] for row in steps if IDLE in row]:
        facts["servers idle"] = f"{statistics.fmean(idle):.0%}"
    if seconds := [row[PUBLISHED] for row in steps if PUBLISHED in row]:
        facts["publication, median"] = f"{statistics.median(seconds):.3g} s"
        failed = sum(row.get("publish/failed", 0.0) for row in steps)
        facts["failed publications"] = f"{failed:.0f} of {len(seconds)}" if failed else "none"
    return facts


def _versions(steps: Sequence[Row]) -> Iterator[str]:
    """The versions that each server had when steps took their samples, beside the newest of all servers."""
    seen: dict[str, list[tuple[float, float]]] = {}
    for row in steps:
        found = {name.removeprefix(VERSION): value for name, value in row.items() if name.startswith(VERSION)}
        for server, version in found.items():
            seen.setdefault(server, []).append((version, max(found.values()) - version))
    if seen:
        table = [
            [server, f"{pairs[0][0]:.0f}", f"{pairs[-1][0]:.0f}", f"{max(behind for _, behind in pairs):.0f}"]
            for server, pairs in seen.items()
        ]
        yield "<h4>Versions of the weights</h4>"
        yield draw_table(("server", "first", "last", "most behind"), table)
