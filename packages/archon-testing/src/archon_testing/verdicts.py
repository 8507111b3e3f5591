"""Deviations of a layout from one process, and their limits. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from archon_testing.cases import Case

Quantity = Literal["loss", "gradient norm", "gradients", "weights", "outputs", "optimizer state", "export"]

QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
NOTHING = "nothing was recorded"
"""Name of the deviation of a quantity that was not recorded."""
LIMITS: Mapping[str, float] = {"float64": 1e-9, "float32": 1e-5, "bfloat16": 0.25}
"""In float64, rounding cannot hide a bug; float32 uses other code paths, such as grouped matrix products. bfloat16
rounds to 8 bits after every operation: even on one process, single elements of gradients differ by up to 0.09 of the
largest one. The purpose of the bfloat16 step does not depend on this limit (see ``precision``)."""

NARROW_LIMITS: Mapping[tuple[str, Quantity], float] = {
    ("bfloat16", "loss"): 0.01,
    ("bfloat16", "gradient norm"): 0.02,
}
"""For quantities in which many bfloat16 errors cancel: on one process they differ by up to 0.002 and 0.007."""


def limit_of(dtype: str, quantity: Quantity) -> float:
    """The largest allowed error."""
    return NARROW_LIMITS.get((dtype, quantity), LIMITS[dtype])


@dataclass(frozen=True)
class Deviation:
    """The worst error of a quantity.

    Attributes:
        error: relative; infinite where a number is not finite or a tensor is missing.
        name: of the parameter, output or metric.
        step: the optimizer step, from 1; ``None`` for outputs.
    """

    error: float
    name: str
    step: int | None = None

    def __str__(self) -> str:
        where = "" if self.step is None else f" (step {self.step})"
        return f"{self.error:.1e} {self.name}{where}"


@dataclass(frozen=True)
class Comparison:
    """The comparison of a record with one process.

    Attributes:
        dtype: of the record.
        worst: the worst error of each quantity.
        problems: errors that need no reference, such as ranks that report different losses.
        trained: whether there were optimizer steps before the weights were recorded.
        limit: of every quantity; ``None`` for those of the dtype.
    """

    dtype: str
    worst: Mapping[Quantity, Deviation]
    problems: tuple[str, ...] = ()
    trained: bool = True
    limit: float | None = None

    @property
    def judged(self) -> tuple[Quantity, ...]:
        """The quantities that are judged: all in float64. Adam divides nearly zero gradients by their own size, so
        weights and second moments diverge in float32; their error is shown but not judged."""
        if self.dtype == "float64" or not self.trained:
            return QUANTITIES
        return tuple(quantity for quantity in QUANTITIES if quantity not in ("weights", "optimizer state"))

    @property
    def failed(self) -> tuple[Quantity, ...]:
        """The quantities whose error is above the limit."""
        limits = {q: limit_of(self.dtype, q) if self.limit is None else self.limit for q in self.judged}
        return tuple(q for q, limit in limits.items() if not self.worst[q].error <= limit)

    @property
    def passed(self) -> bool:
        """Whether every quantity is within its limit and nothing else is wrong."""
        return not self.failed and not self.problems


@dataclass(frozen=True)
class Verdict:
    """The oracle's verdict on a case.

    Attributes:
        case: the case.
        comparison: with one process, the worst of all ranks; ``None`` if the layout was refused.
        refusal: why the engine cannot run the model on this layout; empty if it can.
    """

    case: Case
    comparison: Comparison | None
    refusal: str = ""

    @property
    def passed(self) -> bool:
        """Whether the layout ran and all values agree."""
        return self.comparison is not None and self.comparison.passed


@dataclass(frozen=True)
class RankReport:
    """The report of one rank on a case.

    Attributes:
        verdict: of its shards.
        shared: name -> number that must be equal to the last bit on all ranks.
        data_rank: its data rank.
        outputs: a checksum of its per-token outputs, equal for all ranks of one data rank.
        missing: parameters of the model that it does not have.
        pipeline: the first rank of its pipeline, whose ranks together hold the model.
        takes_part: false on ranks that do not take part when one process resumes a run.
    """

    verdict: Verdict
    shared: Mapping[str, float] = field(default_factory=dict)
    data_rank: int = 0
    outputs: int = 0
    missing: frozenset[str] = frozenset()
    pipeline: int = 0
    takes_part: bool = True


def joint_verdict(reports: Sequence[RankReport]) -> Verdict:
    """The worst of all ranks' verdicts, with their disagreements as problems."""
    reports = [report for report in reports if report.takes_part]
    case = reports[0].verdict.case
    refusals = [report.verdict.refusal for report in reports if report.verdict.refusal]
    if refusals:
        return Verdict(case, None, refusals[0])
    worst = worst_of(report.verdict.comparison for report in reports if report.verdict.comparison is not None)
    return Verdict(case, replace(worst, problems=(*_disagreements(reports), *worst.problems)))


def _disagreements(reports: Sequence[RankReport]) -> Iterator[str]:
    for name in reports[0].shared:
        values = [report.shared.get(name, math.nan) for report in reports]
        if len({value.hex() for value in values}) > 1:
            yield f"ranks report different values of {name}: {', '.join(map(repr, values))}"
    for data_rank in sorted({report.data_rank for report in reports}):
        if len({report.outputs for report in reports if report.data_rank == data_rank}) > 1:
            yield f"ranks of data rank {data_rank} compute different outputs"
    for pipeline in sorted({report.pipeline for report in reports}):
        ranks = [rank for rank, report in enumerate(reports) if report.pipeline == pipeline]
        nowhere = frozenset.intersection(*(reports[rank].missing for rank in ranks))
        if nowhere:
            named = ", ".join(sorted(nowhere))
            yield f"no rank of {', '.join(map(str, ranks))}, which together hold the model, has {named}"


def worst_deviation(deviations: Iterable[Deviation]) -> Deviation:
    """The one with the largest error, the first of them among equals."""
    return max(deviations, key=lambda deviation: deviation.error, default=Deviation(0.0, NOTHING))


def worst_of(comparisons: Iterable[Comparison]) -> Comparison:
    """The worst of every quantity over several comparisons of one type, with all their problems, each once."""
    everything = list(comparisons)
    dtypes = {comparison.dtype for comparison in everything}
    assert len(dtypes) == 1, f"comparisons in {sorted(dtypes)} have no common limit"
    worst = {quantity: worst_deviation(c.worst[quantity] for c in everything) for quantity in QUANTITIES}
    problems = dict.fromkeys(problem for comparison in everything for problem in comparison.problems)
    trained = any(comparison.trained for comparison in everything)
    return replace(everything[0], worst=worst, problems=tuple(problems), trained=trained)
