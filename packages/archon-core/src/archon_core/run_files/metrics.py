"""``metrics.jsonl``: one JSON object per row, with ``step``; strings stand for numbers that JSON lacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from archon_core.errors import DataError
from archon_core.run_files.json_lines import read_json_lines

METRICS = "metrics.jsonl"
"""In the run folder."""

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def read_metrics(path: Path, *, on_damage: Callable[[DataError], None] | None = None) -> list[dict[str, float]]:
    """Read the rows of a ``metrics.jsonl``; skips an incomplete last line after a crash.

    Args:
        path: the file.
        on_damage: gets the error of every other line that is not a row; the line is then skipped.

    Raises:
        DataError: another line is not a row, and there is no ``on_damage``.
    """
    if not path.exists():
        return []
    allowed = (
        "every line must be a JSON object of numbers with a step; remove the line, or start a new run with another "
        "trial_name"
    )
    return read_json_lines(path, _row, allowed=allowed, on_damage=on_damage)


def _row(data: Any) -> dict[str, float]:
    row = {name: _NOT_FINITE.get(value, value) for name, value in data.items()}
    if not isinstance(row["step"], int):
        raise TypeError("its step is not a number")
    if not all(isinstance(value, int | float) for value in row.values()):
        raise TypeError("a metric is not a number")
    return row
