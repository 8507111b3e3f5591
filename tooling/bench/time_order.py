"""Whether predicted times come in the order of measured ones, as far as measurements repeat.

Two layouts have no order if their measured times differ by less than the median noise of all layouts, of which one
disturbed turn is no measure, or by less than the bar of equality. A measurement that puts too few layouts in an order
shows nothing, so it fails, too.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

EQUAL = 0.03
"""Measured times within this share of each other have no order, however well they repeat."""

MOST_NOISE = 0.15
"""Measured times that differ by more than this share have an order, however badly they repeat."""

MOST_EQUAL = 0.3
"""Largest share of pairs without an order."""


@dataclass(frozen=True)
class Row:
    """A layout's times in seconds: the fastest step of each turn, and the predicted one."""

    name: str
    turns: tuple[float, ...]
    predicted: float

    @property
    def fastest(self) -> float:
        """The fastest step."""
        return min(self.turns)

    @property
    def noise(self) -> float:
        """By how much the slowest turn exceeds the fastest."""
        return max(self.turns) / self.fastest - 1


@dataclass(frozen=True)
class Orders:
    """The orders of all pairs of layouts.

    Attributes:
        noise: measured times within this share of each other have no order.
        pairs: number of pairs.
        wrong: pairs whose predicted times have the other order than the measured ones.
        equal: pairs without an order, with the difference of their measured times.
    """

    noise: float
    pairs: int
    wrong: tuple[tuple[str, str], ...]
    equal: tuple[str, ...]

    def problems(self) -> list[str]:
        """What a benchmark fails for."""
        problems = []
        if self.wrong:
            problems.append(f"the order of predicted times differs for {list(self.wrong)}")
        if len(self.equal) > MOST_EQUAL * self.pairs:
            problems.append(
                f"not measurable: {len(self.equal)} of {self.pairs} pairs have no order at a noise of {self.noise:.0%}"
                "; measure on a quiet machine, with more --turns"
            )
        return problems


def compare_orders(rows: Sequence[Row]) -> Orders:
    """Compare the orders of measured and predicted times."""
    noise = max(EQUAL, min(MOST_NOISE, statistics.median(row.noise for row in rows)))
    pairs = list(itertools.combinations(sorted(rows, key=lambda row: row.fastest), 2))
    wrong, equal = [], []
    for a, b in pairs:
        if b.fastest <= a.fastest * (1 + noise):
            equal.append(f"{a.name} and {b.name} ({b.fastest / a.fastest - 1:.0%})")
        elif b.predicted <= a.predicted:
            wrong.append((a.name, b.name))
    return Orders(noise, len(pairs), tuple(wrong), tuple(equal))
