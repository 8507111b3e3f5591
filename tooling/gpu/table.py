"""The result of a run for people: one line per check, then in full what went wrong, and what a trace shows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from gpu.records import Record

SMALLEST_PLAIN, LARGEST_PLAIN = 1e-3, 1e5


def render(records: Sequence[Record]) -> str:
    """The table."""
    width = max((len(record.name) for record in records), default=0)
    lines = [_line(record, width) for record in records]
    counts = Counter(record.status for record in records)
    lines += _troubles(records)
    lines.append("")
    lines.append(", ".join(f"{count} {status}" for status, count in counts.items()) or "no check ran")
    return "\n".join(lines)


def _line(record: Record, width: int) -> str:
    numbers = "  ".join(_number(name, value, record) for name, value in record.measured.items())
    first = record.message.partition("\n")[0]
    return f"{record.status:<8}{record.name:<{width}}  {record.seconds:6.1f} s  {numbers}  {first}".rstrip()


def _number(name: str, value: float, record: Record) -> str:
    text = f"{name} {_shown(value)}"
    if name in record.bound:
        text += f" (at most {_shown(record.bound[name])})"
    if name in record.goal:
        text += f" (goal {_shown(record.goal[name])})"
    return text


def _shown(value: float) -> str:
    if not math.isfinite(value) or (value and abs(value) < SMALLEST_PLAIN):
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= LARGEST_PLAIN or value == int(value) else f"{value:.4g}"


def _troubles(records: Sequence[Record]) -> Iterator[str]:
    for record in records:
        if record.status in ("fail", "error", "timeout") or "\n" in record.message:
            yield ""
            yield f"{record.status}: {record.name}"
            yield record.message


def as_json(machine: Mapping[str, object], records: Sequence[Record], seconds: float) -> dict[str, object]:
    """The content of the JSON file. Numbers that are not finite, which JSON lacks, are texts."""
    checks = [{**vars(record), "measured": _finite(record.measured)} for record in records]
    return {"machine": dict(machine), "seconds": round(seconds, 1), "checks": checks}


def _finite(numbers: Mapping[str, float]) -> dict[str, float | str]:
    return {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}
