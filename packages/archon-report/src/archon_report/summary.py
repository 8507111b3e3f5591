"""The head of the page: state, main numbers, and what is wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from archon_core.page.charts import draw_table
from archon_core.page.parts import paragraph, remark, tiles
from archon_report.run import Run
from archon_report.series import PROFILED, cumulated

HELD_OUT = re.compile(r"eval/(reward|accuracy|loss|reward_avg@\d+|pass@\d+)")
SPEED = "tokens_per_second"


def draw_summary(runs: Sequence[Run]) -> Iterator[str]:
    """Tiles of one run, or a table with a column for each of several, and problems below it."""
    if len(runs) == 1:
        [run] = runs
        yield f'<p class="state {run.state.kind}">{escape(run.state.text)}</p>'
        yield tiles(_facts(run))
    else:
        columns = [{"state": run.state.text, **_facts(run)} for run in runs]
        names = list(dict.fromkeys(name for column in columns for name in column))
        rows = [[name, *(column.get(name, "") for column in columns)] for name in names]
        table = draw_table(["", *(run.name for run in runs)], rows)
        yield table.replace('"scroll"', '"scroll texts"', 1)  # a state may be a long sentence
    for run in runs:
        for problem in run.problems:
            yield f'<p class="bad">{escape(f"{run.name}: cannot read {problem}")}</p>'
        if not run.rows:
            yield paragraph(f"{run.name}: no step is finished yet.")
        if profiled := [int(row["step"]) for row in run.rows if row.get(PROFILED)]:
            steps = f"step{'s' if len(profiled) > 1 else ''} {_listed(profiled)}"
            yield remark(f"{run.name}: a profiler slowed {steps}; the mean of tokens/s leaves profiled steps out.")
        for name, series in run.series.items():
            if places := series.not_finite:
                yield f'<p class="bad">{escape(f"{run.name}: {name} is not finite at step {_listed(places)}")}</p>'


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[:8])) + (", …" if len(steps) > 8 else "")


def _facts(run: Run) -> dict[str, str]:
    series = run.series
    facts = {"steps": f"{run.step:,}" if run.total is None else f"{run.step:,} of {run.total:,}"}
    for metric, title in (("reward", "reward"), ("loss", "loss")):
        if metric in series:
            facts[title] = _number(series[metric].last)
    for metric in filter(HELD_OUT.fullmatch, series):
        facts[f"held-out {metric.removeprefix('eval/').replace('_', ' ')}"] = _number(series[metric].last)
    if speeds := _speeds(run):
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


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "not finite"


def _speeds(run: Run) -> list[float]:
    """Tokens per second of all steps that no profiler slowed; of all steps if there are no others."""
    rows = [row for row in run.rows if math.isfinite(row.get(SPEED, math.nan))]
    return [row[SPEED] for row in rows if not row.get(PROFILED)] or [row[SPEED] for row in rows]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
