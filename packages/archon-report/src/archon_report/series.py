"""Curves of a run: metrics as series over steps, short enough for a page."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MOST_POINTS = 1500
"""Most points of a curve on a page; a screen has no more columns of pixels."""

MOST_COLUMNS = 150
"""Most columns of a stacked chart."""

Row = Mapping[str, float]
"""A row of the metrics."""

PHASE = "time/"
STEP_TIME = "time/step"
PHASE_NAMES = {"logprobs": "log-probabilities", "publish": "publication", "dump": "trajectory files"}
"""Phases whose names in the metrics are abbreviations."""

PROFILED = "profiled"
"""In the row of a step that a profiler has slowed."""

HELD_OUT_REWARD = r"eval/reward(?:_avg@\d+)?"
"""Pattern of the held-out reward: of one completion per record, or the mean of several."""


@dataclass(frozen=True)
class Series:
    """A metric over steps.

    Attributes:
        steps: ascending.
        values: one per step; not all finite.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def not_finite(self) -> list[int]:
        """The steps whose value is NaN or infinite."""
        return [step for step, value in zip(self.steps, self.values, strict=True) if not math.isfinite(value)]

    @property
    def last(self) -> float:
        """The last value."""
        return self.values[-1]


def series_of(rows: Sequence[Mapping[str, float]]) -> dict[str, Series]:
    """Metric -> series. Of several values of a metric for one step, the last one counts."""
    found: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                found[name][int(row["step"])] = float(value)
    return {
        name: Series(tuple(sorted(points)), tuple(points[step] for step in sorted(points)))
        for name, points in found.items()
    }


def unprofiled(rows: Sequence[Row]) -> list[Row]:
    """The rows of steps that no profiler slowed; all rows if there are no others."""
    return [row for row in rows if not row.get(PROFILED)] or list(rows)


def number(value: float) -> str:
    """A value with four digits, for readers."""
    return f"{value:.4g}" if math.isfinite(value) else "not finite"


def thin(series: Series, most: int = MOST_POINTS) -> Series:
    """The series with at most about ``most`` points: the smallest and the largest of each interval, and both ends.

    Values that are not finite stay, because they are why somebody looks at the curve.
    """
    count = len(series.steps)
    if count <= most:
        return series
    size = math.ceil(2 * count / most)
    kept = {0, count - 1}
    for start in range(0, count, size):
        places = range(start, min(start + size, count))
        finite = [place for place in places if math.isfinite(series.values[place])]
        if len(finite) < len(places):
            kept.add(next(place for place in places if place not in finite))
        if finite:
            kept |= {min(finite, key=series.values.__getitem__), max(finite, key=series.values.__getitem__)}
    places = sorted(kept)
    return Series(tuple(series.steps[p] for p in places), tuple(series.values[p] for p in places))


def cumulated(series: Series | None) -> Series | None:
    """Sums up to each step; ``None`` without the series."""
    if series is None:
        return None
    total, sums = 0.0, []
    for value in series.values:
        total += value if math.isfinite(value) else 0.0
        sums.append(total)
    return Series(series.steps, tuple(sums))


@dataclass(frozen=True)
class Split:
    """Parts that add up, over steps.

    Attributes:
        steps: first step of each column.
        parts: name -> mean of each column.
    """

    steps: tuple[int, ...]
    parts: Mapping[str, tuple[float, ...]]


def phase_name(metric: str) -> str:
    """The phase that a ``time/...`` metric measures, for readers."""
    phase = metric.removeprefix(PHASE)
    return PHASE_NAMES.get(phase, phase)


def time_split(rows: Sequence[Mapping[str, float]], most: int = MOST_COLUMNS) -> Split | None:
    """The phases of training steps, in the order in which a step runs them; ``None`` without phases."""
    steps = [row for row in rows if STEP_TIME in row]
    found = [[name for name in row if name.startswith(PHASE) and name not in (STEP_TIME, "time/eval")] for row in steps]
    # The first steps may lack phases, such as updates while a critic warms up, so a complete step gives the order.
    names = list(dict.fromkeys(name for row in sorted(found, key=len, reverse=True) for name in row))
    if not names:
        return None
    phases = {phase_name(name): lambda row, name=name: row.get(name, 0.0) for name in names}
    return split_of(steps, phases, most)


def split_of(rows: Sequence[Row], parts: Mapping[str, Callable[[Row], float]], most: int = MOST_COLUMNS) -> Split:
    """Parts of rows. Means over intervals of steps, so that areas keep their size.

    Args:
        rows: one per step.
        parts: name -> the part of a row; one that is less than a thousandth of the largest everywhere is left out.
        most: most columns.
    """
    size = max(1, math.ceil(len(rows) / most))
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]
    means = {name: tuple(sum(map(part, group)) / len(group) for group in groups) for name, part in parts.items()}
    largest = {name: max(filter(math.isfinite, values), default=0.0) for name, values in means.items()}
    least = max(largest.values(), default=0.0) / 1000
    shown = {name: values for name, values in means.items() if largest[name] > least}
    return Split(tuple(int(group[0]["step"]) for group in groups), shown)
