"""The head of the page: state, main numbers, and what is wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from archon_core.page.charts import draw_table
from archon_core.page.parts import paragraph, remark, tiles
from archon_report.run import Run
from archon_report.series import HELD_OUT_REWARD, PROFILED, Row, cumulated, number, unprofiled

HELD_OUT = re.compile(rf"{HELD_OUT_REWARD}|eval/(?:accuracy|loss|pass@\d+)")
SPEED = "tokens_per_second"

MOST_SIDE_BY_SIDE = 6
"""Most runs that have a column each in the table of several; of more, each has a row."""


def draw_summary(runs: Sequence[Run]) -> Iterator[str]:
    """Tiles of one run, or a table of several, and problems below it."""
    if len(runs) == 1:
        [run] = runs
        yield f'<p class="state {run.state.kind}">{escape(run.state.text)}</p>'
        yield tiles(_facts(run))
    else:
        yield _side_by_side(runs)
    for run in runs:
        for problem in run.problems:
            yield f'<p class="bad">{escape(f"{run.name}: cannot read {problem}")}</p>'
        if not run.rows:
            yield paragraph(f"{run.name}: no step is finished yet.")
        if profiled := [int(row["step"]) for row in run.rows if row.get(PROFILED)]:
            steps = f"step{'s' if len(profiled) > 1 else ''} {_listed(profiled)}"
            yield remark(f"{run.name}: a profiler slowed {steps}{_effect(run)}.")
        for name, series in run.series.items():
            if places := series.not_finite:
                yield f'<p class="bad">{escape(f"{run.name}: {name} is not finite at step {_listed(places)}")}</p>'


def _side_by_side(runs: Sequence[Run]) -> str:
    """The facts of several runs: a column for each run, or a row if there are many."""
    facts = [{"state": run.state.text, **_facts(run)} for run in runs]
    names = list(dict.fromkeys(name for one in facts for name in one))
    table = [["", *(run.name for run in runs)], *([name, *(one.get(name, "") for one in facts)] for name in names)]
    if len(runs) > MOST_SIDE_BY_SIDE:
        table = list(map(list, zip(*table, strict=True)))
    return draw_table(table[0], table[1:], texts=True)  # a state may be a long sentence


def _effect(run: Run) -> str:
    """What profiled steps do to the mean of tokens/s."""
    rows = _rows_with_speed(run)
    if not rows:
        return ""
    if all(row.get(PROFILED) for row in rows):
        return "; the mean of tokens/s includes profiled steps, because there are no others"
    return "; the mean of tokens/s leaves profiled steps out"


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[:8])) + (", …" if len(steps) > 8 else "")


def _facts(run: Run) -> dict[str, str]:
    series = run.series
    facts = {"steps": f"{run.step:,}" if run.total is None else f"{run.step:,} of {run.total:,}"}
    for metric, title in (("reward", "reward"), ("loss", "loss")):
        if metric in series:
            facts[title] = number(series[metric].last)
    for metric in filter(HELD_OUT.fullmatch, series):
        facts[f"held-out {metric.removeprefix('eval/').replace('_', ' ')}"] = number(series[metric].last)
    if speeds := [row[SPEED] for row in unprofiled(_rows_with_speed(run))]:
        facts["tokens/s, mean"] = f"{sum(speeds) / len(speeds):,.0f}"
    if (seconds := cumulated(series.get("time/step"))) is not None:
        facts["time in steps"] = _duration(seconds.last)
    actor = run.config.get("actor")
    for title, value in (
        ("algorithm", run.config.get("algorithm")),
        ("layout", actor.get("backend") if isinstance(actor, Mapping) else None),
    ):
        if isinstance(value, str):
            facts[title] = value
    return facts


def _rows_with_speed(run: Run) -> list[Row]:
    return [row for row in run.rows if math.isfinite(row.get(SPEED, math.nan))]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
