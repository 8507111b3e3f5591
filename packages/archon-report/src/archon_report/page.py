"""The report as one HTML page: nothing to load, readable on a phone, light and dark."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from typing import Any

from archon_core.page.charts import draw_table
from archon_core.page.parts import folded, remark
from archon_core.page.style import STYLE
from archon_report import __version__
from archon_report.asynchrony import charts_of, draw_asynchrony
from archon_report.environment import draw_environment, draw_files
from archon_report.loads import heat_map
from archon_report.options_table import draw_side_by_side, flatten
from archon_report.panels import OTHERS, Panel, panels_of
from archon_report.run import Run
from archon_report.samples import draw_samples
from archon_report.series import MOST_POINTS, PHASE, Series, Split, cumulated, thin, time_split
from archon_report.summary import draw_summary
from archon_report.timelines import draw_timelines

SECTIONS = (
    ("curves", "Curves"),
    ("time", "Time"),
    ("asynchrony", "Sampling and servers"),
    ("experts", "Expert load"),
    ("pipeline", "Pipeline"),
    ("samples", "Samples"),
    ("options", "Options"),
    ("decisions", "Decisions"),
    ("environment", "Environment"),
    ("files", "Files"),
)


def render_page(runs: Sequence[Run], *, now: datetime | None = None) -> str:
    """The page about one run or several.

    Args:
        runs: at least one; their curves share charts.
        now: when it is written.
    """
    title = ", ".join(run.name for run in runs)
    bodies = {
        "curves": list(_curves(runs)),
        "time": list(_time(runs)),
        "asynchrony": list(_asynchrony(runs)),
        "experts": list(_experts(runs)),
        "pipeline": list(_each(runs, lambda run: draw_timelines(run.recordings))),
        "samples": list(_each(runs, lambda run: draw_samples(run.lines) if run.lines else ())),
        "options": list(_options(runs)),
        "decisions": list(_each(runs, _decisions)),
        "environment": list(draw_environment(runs)),
        "files": list(_each(runs, draw_files)),
    }
    shown = [(anchor, heading) for anchor, heading in SECTIONS if bodies[anchor]]
    links = "".join(f'<a href="#{anchor}">{heading}</a>' for anchor, heading in shown)
    sections = "".join(
        f'<section id="{anchor}"><h2>{heading}</h2>{"".join(bodies[anchor])}</section>' for anchor, heading in shown
    )
    written = (now or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>archon report: {escape(title)}</title><style>{STYLE}{_resource('page.css')}</style></head>\n"
        f'<body><main><button id="theme" type="button" aria-label="light or dark">◐</button><h1>{escape(title)}</h1>'
        f"{remark(f'Written by archon report {__version__}, {written}.')}{''.join(draw_summary(runs))}"
        f"<nav>{links}</nav>\n{sections}\n</main>"
        f'<script type="application/json" id="data">{_json(_data(runs))}</script>'
        f"<script>{_resource('page.js')}</script></body></html>\n"
    )


def _resource(name: str) -> str:
    return files("archon_report").joinpath(name).read_text(encoding="utf-8")


def _json(data: Any) -> str:
    """JSON that cannot end the script element that contains it."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _data(runs: Sequence[Run]) -> dict[str, Any]:
    panels = _panels(runs)
    return {
        "panels": [asdict(panel) for panel in panels],
        "runs": [_run_data(run) for run in runs],
    }


def _panels(runs: Sequence[Run]) -> list[Panel]:
    metrics = {name for run in runs for name in run.series if not _is_phase(name)}
    zero = {name for name in metrics if not any(any(run.series[name].values) for run in runs if name in run.series)}
    return panels_of(metrics, zero=zero)


def _is_phase(metric: str) -> bool:
    return metric.startswith(PHASE) and metric != "time/step"


def _run_data(run: Run) -> dict[str, Any]:
    split = time_split(run.rows)
    splits = [] if split is None else [("time", "seconds", split)]
    splits += [(chart.name, chart.unit, chart.split) for chart in charts_of(run.rows)]
    seconds = cumulated(run.series.get("time/step"))
    tokens = cumulated(run.series.get("tokens"))
    return {
        "name": run.name,
        "series": {name: _points(thin(series)) for name, series in run.series.items() if not _is_phase(name)},
        "axes": {
            name: _points(thin(series, 4 * MOST_POINTS))
            for name, series in (("seconds", seconds), ("tokens", tokens))
            if series is not None
        },
        "splits": {name: _split_data(unit, split) for name, unit, split in splits},
        "loads": {role: heat_map(loads) for role, loads in run.loads.items()},
    }


def _points(series: Series) -> list[list[float | None]]:
    return [list(series.steps), [_number(value) for value in series.values]]


def _split_data(unit: str, split: Split) -> dict[str, Any]:
    parts = {name: [_number(value) for value in values] for name, values in split.parts.items()}
    return {"unit": unit, "steps": split.steps, "parts": parts}


def _number(value: float) -> float | None:
    """Six significant digits; ``None`` for what JSON cannot express."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _curves(runs: Sequence[Run]) -> Iterator[str]:
    panels = _panels(runs)
    if not panels:
        return
    chips = "".join(
        f'<button type="button" class="chip" data-run="{place}" aria-pressed="true"><i></i>{escape(run.name)}</button>'
        for place, run in enumerate(runs)
    )
    yield (
        f'<div class="controls">{chips}'
        '<label>over <select id="axis"><option value="step">steps</option><option value="tokens">tokens</option>'
        '<option value="seconds">time</option></select></label>'
        '<label>smooth <input id="smooth" type="range" min="0" max="0.95" step="0.05" value="0"></label></div>'
        "<noscript><p>The curves need JavaScript; the page loads nothing.</p></noscript>"
    )
    for group in dict.fromkeys(panel.group for panel in panels):
        grid = f'<div class="grid" data-group="{escape(group)}"></div>'
        if group == OTHERS:
            yield folded(OTHERS, grid)
        else:
            yield f"<h3>{escape(group)}</h3>{grid}"


def _time(runs: Sequence[Run]) -> Iterator[str]:
    if not any(time_split(run.rows) for run in runs):
        return
    yield remark("Seconds of a step by phase; a phase that takes less than a thousandth of the longest is left out.")
    for place, run in enumerate(runs):
        if time_split(run.rows) is not None:
            yield _heading(runs, run) + f'<figure class="split" data-run="{place}" data-chart="time"></figure>'


def _asynchrony(runs: Sequence[Run]) -> Iterator[str]:
    for place, run in enumerate(runs):
        if text := "".join(draw_asynchrony(run.rows, place)):
            yield _heading(runs, run) + text


def _experts(runs: Sequence[Run]) -> Iterator[str]:
    for place, run in enumerate(runs):
        for role in run.loads:
            yield _heading(runs, run, role if len(run.loads) > 1 or role != "actor" else "")
            yield f'<figure class="heat" data-run="{place}" data-role="{escape(role)}"></figure>'


def _options(runs: Sequence[Run]) -> Iterator[str]:
    if any(run.config for run in runs):
        yield draw_side_by_side(
            "option", [run.name for run in runs], [flatten(run.config) for run in runs], search="search the options"
        )


def _decisions(run: Run) -> Iterator[str]:
    if run.decisions:
        rows = [[one["option"], one["requested"], one["effective"], one["reason"]] for one in run.decisions]
        yield draw_table(("option", "asked", "in effect", "reason"), rows, texts=True)


def _each(runs: Sequence[Run], draw: Any) -> Iterator[str]:
    """The parts of every run that has some, under its name."""
    for run in runs:
        parts: Iterable[str] = draw(run)
        if text := "".join(parts):
            yield _heading(runs, run) + text


def _heading(runs: Sequence[Run], run: Run, role: str = "") -> str:
    words = [run.name] if len(runs) > 1 else []
    words += [role] if role else []
    return f"<h3>{escape(': '.join(words))}</h3>" if words else ""
