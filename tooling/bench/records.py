"""The form of every benchmark's result: ratios with both raw values, the machine, and how the benchmark ended.

A file of one benchmark and a file of many hold the same objects: the table, the comparison with the baseline and
docs/performance.md read one form.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

Status = Literal["pass", "fail", "skipped", "error", "timeout"]
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Figure:
    """A raw value, such as 1.25 s or 4,881 tokens/s."""

    value: float
    unit: str


@dataclass(frozen=True)
class Measurement:
    """One ratio.

    Attributes:
        name: unique within its benchmark.
        ratio: of the two raw values, in the direction that the benchmark states.
        better: whether a higher or a lower ratio is better.
        archon: raw value of Archon.
        other: raw value of the other side, or the limit of an absolute measurement.
        against: what the other side is.
        repetitions: of each side.
        bar: worst ratio that passes; without one, the ratio is only reported and compared with the baseline.
        absolute: the other side is a limit rather than a measurement; comparable only on the same machine.
        compared: whether a worse ratio than the baseline's is a regression; not for a prediction's error, for example.
        details: further raw values for the page, such as seconds of parts.
    """

    name: str
    ratio: float
    better: Better
    archon: Figure
    other: Figure
    against: str
    repetitions: int
    bar: float | None = None
    absolute: bool = False
    compared: bool = True
    details: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the ratio reaches its bar; NaN never does."""
        if self.bar is None:
            return True
        return self.ratio >= self.bar if self.better == "higher" else self.ratio <= self.bar

    def worse_by(self, before: float) -> float:
        """Share by which this ratio is worse than an earlier one; negative if better."""
        if self.better == "higher":
            return 1 - self.ratio / before
        return 1 - before / self.ratio

    def describe(self) -> str:
        """One line."""
        bar = "" if self.bar is None else f", bar {'>=' if self.better == 'higher' else '<='} {self.bar:g}"
        return (
            f"{self.name}: {shown(self.archon)}, {self.against} {shown(self.other)}, ratio {self.ratio:.3g}{bar}"
            f"{'' if self.passed else ' MISSED'}"
        )


@dataclass(frozen=True)
class Result:
    """How one benchmark ended.

    Attributes:
        bench: module name in ``tooling/bench``.
        status: ``fail`` if a bar is missed; ``error`` and ``timeout`` keep what was measured before.
        measurements: in the order in which they were made.
        machine: see ``machine.describe``.
        seconds: wall time of the whole benchmark.
        message: reason of a status other than ``pass``, or a remark.
    """

    bench: str
    status: Status
    measurements: tuple[Measurement, ...] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    message: str = ""

    def judged(self, problems: Sequence[str] = ()) -> Result:
        """``pass``, or ``fail`` with every missed bar and every other problem."""
        missed = [f"missed: {one.describe().removesuffix(' MISSED')}" for one in self.measurements if not one.passed]
        reasons = [*missed, *problems]
        return replace(self, status="fail" if reasons else "pass", message="\n".join(reasons) or self.message)


def to_json(results: Sequence[Result]) -> str:
    """The text of a results file."""
    return json.dumps({"benches": [_plain(result) for result in results]}, indent=1, allow_nan=False) + "\n"


def from_json(text: str, *, source: str) -> list[Result]:
    """The results of a file.

    Raises:
        ValueError: the text is not such a file; the message names ``source``.
    """
    try:
        return [_result(row) for row in json.loads(text)["benches"]]
    except (KeyError, TypeError, ValueError) as problem:
        raise ValueError(
            f"{source}: found no benchmark results ({problem}); `hatch run bench --json` writes them"
        ) from problem


def read_results(path: Path) -> list[Result]:
    """The results of a file; see ``from_json``."""
    return from_json(path.read_text(encoding="utf-8"), source=str(path))


def merged(old: Sequence[Result], new: Sequence[Result]) -> list[Result]:
    """``old`` with every benchmark replaced that ``new`` measured, and new ones at the end."""
    fresh = {result.bench: result for result in new}
    kept = [fresh.pop(result.bench, result) for result in old]
    return [*kept, *fresh.values()]


def _plain(result: Result) -> dict[str, Any]:
    rows = [asdict(one) | {"ratio": _finite(one.ratio), "passed": one.passed} for one in result.measurements]
    return asdict(result) | {"measurements": rows, "seconds": round(result.seconds, 1)}


def _result(row: Mapping[str, Any]) -> Result:
    measurements = []
    for entry in row["measurements"]:
        values = {name: value for name, value in entry.items() if name != "passed"}
        values |= {"archon": Figure(**entry["archon"]), "other": Figure(**entry["other"])}
        measurements.append(Measurement(**values | {"ratio": float(entry["ratio"])}))
    return Result(**{**row, "measurements": tuple(measurements)})


def _finite(value: float) -> float | str:
    """JSON has no infinities and no NaN: they are texts."""
    return value if math.isfinite(value) else str(value)


def shown(figure: Figure) -> str:
    """The value and its unit."""
    number = f"{figure.value:,.0f}" if abs(figure.value) >= 1000 else f"{figure.value:.3g}"
    return f"{number} {figure.unit}".strip()
