"""What a trace says of a step: the kernels that take most time, and the gaps in which nothing runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SHOWN = 10
WIDTH = 90
"""Characters of a kernel's name: templates have hundreds."""


@dataclass(frozen=True)
class Interval:
    """A kernel that ran, or an operation on a CPU; times in microseconds."""

    name: str
    begin: float
    end: float

    @property
    def length(self) -> float:
        return self.end - self.begin


@dataclass(frozen=True)
class Gap:
    """Time between two kernels in which none ran, in microseconds since the first kernel."""

    begin: float
    length: float
    after: str
    before: str


def busy(intervals: Sequence[Interval]) -> float:
    """Microseconds in which at least one runs; streams and threads overlap."""
    if not intervals:
        return 0.0
    span = max(one.end for one in intervals) - min(one.begin for one in intervals)
    return span - sum(gap.length for gap in gaps(intervals))


def gaps(intervals: Sequence[Interval]) -> Iterator[Gap]:
    """All gaps, in order."""
    ordered = sorted(intervals, key=lambda one: one.begin)
    if not ordered:
        return
    last, start = ordered[0], ordered[0].begin
    for one in ordered[1:]:
        if one.begin > last.end:
            yield Gap(last.end - start, one.begin - last.end, last.name, one.name)
        if one.end > last.end:
            last = one


def largest(intervals: Sequence[Interval]) -> list[tuple[str, float, int]]:
    """Name, microseconds in all, and calls of the kernels that take most."""
    totals: dict[str, tuple[float, int]] = {}
    for one in intervals:
        time, calls = totals.get(one.name, (0.0, 0))
        totals[one.name] = time + one.length, calls + 1
    ordered = sorted(totals.items(), key=lambda item: -item[1][0])
    return [(name, time, calls) for name, (time, calls) in ordered[:SHOWN]]


def report(intervals: Sequence[Interval]) -> str:
    """The ten largest kernels and gaps, one per line."""
    whole = sum(one.length for one in intervals)
    lines = [f"the {SHOWN} largest kernels:"]
    lines += [
        f"  {time / 1e3:9.3f} ms {time / whole:6.1%} {calls:6d} calls  {_short(name)}"
        for name, time, calls in largest(intervals)
    ]
    lines.append(f"the {SHOWN} largest gaps:")
    lines += [
        f"  {gap.length / 1e3:9.3f} ms at {gap.begin / 1e3:9.3f} ms  {_short(gap.after)} -> {_short(gap.before)}"
        for gap in sorted(gaps(intervals), key=lambda gap: -gap.length)[:SHOWN]
    ]
    return "\n".join(lines)


def _short(name: str) -> str:
    return name if len(name) <= WIDTH else f"{name[: WIDTH - 3]}..."
