"""The head of the page: state, main numbers, and what is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from archon_core.page.charts import draw_table
from archon_core.page.parts import paragraph, tiles
from archon_report.run import Run
from archon_report.series import cumulated


def draw_summary(runs: Sequence[Run]) -> Iterator[str]:
    """Tiles of one run, or a table of several, and problems below it."""
    if len(runs) == 1:
        [run] = runs
        yield f'<p class="state {run.state.kind}">{escape(run.state.text)}</p>'
        yield tiles(_facts(run))
    else:
        columns = [{"state": run.state.text, **_facts(run)} for run in runs]
        names = list(dict.fromkeys(name for column in columns for name in column))
        rows = [
            [run.name, *(column.get(name, "") for name in names)] for run, column in zip(runs, columns, strict=True)
        ]
        yield draw_table(["run", *names], rows)
    for run in runs:
        for problem in run.problems:
            yield f'<p class="bad">{escape(f"{run.name}: {problem}")}</p>'
        if not run.rows:
            yield paragraph(f"{run.name}: no step is finished yet.")
        for name, series in run.series.items():
            if places := series.not_finite:
                steps = ", ".join(map(str, places[:8])) + (", …" if len(places) > 8 else "")
                yield f'<p class="bad">{escape(f"{run.name}: {name} is not finite at step {steps}")}</p>'


def _facts(run: Run) -> dict[str, str]:
    series = run.series
    facts = {"steps": f"{run.step:,}" if run.total is None else f"{run.step:,} of {run.total:,}"}
    for metric, title in (("reward", "reward"), ("loss", "loss")):
        if metric in series:
            facts[title] = f"{series[metric].last:.4g}"
    for metric in ("eval/reward", "eval/accuracy", "eval/loss"):
        if metric in series:
            facts[f"held-out {metric.removeprefix('eval/')}"] = f"{series[metric].last:.4g}"
    if "tokens_per_second" in series:
        finite = [value for value in series["tokens_per_second"].values if math.isfinite(value)]
        facts["tokens/s, mean"] = f"{sum(finite) / max(1, len(finite)):,.0f}"
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


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
