"""``metrics.jsonl``: one JSON object per row, with ``step``; strings stand for numbers that JSON lacks."""

from __future__ import annotations

import json
import math
from pathlib import Path

from archon_core.errors import DataError

METRICS = "metrics.jsonl"
"""In the run folder."""

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read the rows of a ``metrics.jsonl``; skips an incomplete last line after a crash.

    Raises:
        DataError: another line is not a valid row.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows.append({name: _NOT_FINITE.get(value, value) for name, value in row.items()})
            if not isinstance(rows[-1]["step"], int):
                raise TypeError("its step is not a number")
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise DataError(
                f"{path}, line {number}: found {line.strip()[:80]!r}; every line must be a JSON object with a step; "
                "remove the line, or start a new run with another trial_name"
            ) from error
    return rows
