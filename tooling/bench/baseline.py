"""Compares results with the committed baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from records import Measurement, Result

ALLOWED = 0.15
"""Share by which a ratio may be worse than the baseline's."""


@dataclass(frozen=True)
class Regression:
    """A ratio that is worse than the baseline allows.

    Attributes:
        bench: its benchmark.
        measurement: the new one.
        before: ratio of the baseline.
    """

    bench: str
    measurement: Measurement
    before: float

    def describe(self) -> str:
        """One line."""
        return (
            f"{self.bench}, {self.measurement.name}: {self.measurement.ratio:.3g}, baseline {self.before:.3g}, "
            f"worse by {self.measurement.worse_by(self.before):.0%} (allowed {ALLOWED:.0%})"
        )


def regressions(results: Sequence[Result], baseline: Sequence[Result]) -> Iterator[Regression]:
    """Every ratio that is worse than the baseline by more than ``ALLOWED``.

    Absolute figures, such as seconds against a limit, count only on the baseline's machine.
    """
    before = {result.bench: result for result in baseline}
    for result in results:
        old = before.get(result.bench)
        if old is None:
            continue
        is_same = result.machine.get("cpu") == old.machine.get("cpu") and (
            result.machine.get("cores") == old.machine.get("cores")
        )
        ratios = {one.name: one.ratio for one in old.measurements}
        for one in result.measurements:
            if not one.compared or one.name not in ratios or (one.absolute and not is_same):
                continue
            # A NaN is worse than any baseline.
            if not one.worse_by(ratios[one.name]) <= ALLOWED:
                yield Regression(result.bench, one, ratios[one.name])


def not_compared(results: Sequence[Result], baseline: Sequence[Result]) -> Iterator[str]:
    """What the baseline has and ``results`` lack, or the other way round: a check that passes must not hide them."""
    old = {result.bench: result for result in baseline}
    new = {result.bench: result for result in results}
    for name, result in new.items():
        if result.status in ("skipped", "error", "timeout"):
            yield f"{name}: {result.status}: {result.message.partition(chr(10))[0]}"
        if name not in old:
            yield f"{name}: not in the baseline"
            continue
        here, there = ({one.name for one in side[name].measurements} for side in (new, old))
        if result.status in ("pass", "fail"):
            yield from (f"{name}, {one}: in the baseline, not measured" for one in sorted(there - here))
        yield from (f"{name}, {one}: not in the baseline" for one in sorted(here - there))
