"""The metrics of a run: ``metrics.jsonl`` for programs, TensorBoard for curves.

Every row is flushed. A resumed run drops the rows after its checkpoint, so the file reads as if the run had never
stopped.
"""

from __future__ import annotations

import importlib.util
import json
import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from archon_core.contracts.decisions import Decision
from archon_core.errors import DataError
from archon_engine.checkpoint.publication import publish_text
from archon_train.run.folder import RunFolder

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsLog:
    """Writes rows of numbers. Close it, or use it as a context manager.

    Args:
        folder: the run folder.
        resume_step: step of the checkpoint to resume from; rows of later steps are dropped. ``None`` for a new run,
            which drops all rows.
        decisions: gets a decision if TensorBoard is not installed.
    """

    def __init__(self, folder: RunFolder, *, resume_step: int | None, decisions: list[Decision]) -> None:
        rows = (
            [] if resume_step is None else [row for row in read_metrics(folder.metrics) if row["step"] <= resume_step]
        )
        publish_text(folder.metrics, "".join(_encode_row(row) for row in rows))
        self._file = folder.metrics.open("a", encoding="utf-8")
        self._tensorboard_folder = folder.tensorboard
        self._resume_step = resume_step
        self._writer: Any = None
        self._has_tensorboard = importlib.util.find_spec("tensorboard") is not None
        if not self._has_tensorboard:
            decisions.append(
                Decision(
                    option="tensorboard",
                    requested="metrics.jsonl and tensorboard/",
                    effective="metrics.jsonl",
                    reason='the package is not installed: pip install "archon-train[tensorboard]"',
                )
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one row.

        Args:
            step: optimizer steps done; several rows may share it, such as a training and an evaluation row.
            values: name -> number: int, float, bool (written as 0 or 1) or a scalar of numpy or torch. NaN and
                infinities are written as the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, since JSON has
                no numbers for them.

        Raises:
            TypeError: a value is not a number, or a name is ``step``.
        """
        if "step" in values:
            raise TypeError("metrics: found the name 'step', which is reserved; use another name")
        row: dict[str, float] = {"step": step}
        row |= {name: _number(name, value) for name, value in values.items()}
        self._file.write(_encode_row(row))
        self._file.flush()
        if self._has_tensorboard:
            if self._writer is None:
                self._writer = self._open_tensorboard()
            for name, value in row.items():
                if name != "step":
                    self._writer.add_scalar(name, value, global_step=step)
            self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open_tensorboard(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides the events that the crashed run wrote after its last checkpoint.
        purge_step = 0 if self._resume_step is None else self._resume_step + 1
        return SummaryWriter(str(self._tensorboard_folder), purge_step=purge_step)


class NoMetrics(MetricsLog):
    """Writes nothing: the metrics of a rank that is not the first."""

    def __init__(self) -> None:
        """Open no file."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Ignore the row; the first rank writes it."""

    def close(self) -> None:
        """Do nothing."""


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


def _encode_row(row: Mapping[str, float]) -> str:
    names = {math.inf: "Infinity", -math.inf: "-Infinity"}
    encoded = {
        name: value if math.isfinite(value) else ("NaN" if math.isnan(value) else names[value])
        for name, value in row.items()
    }
    return json.dumps(encoded, allow_nan=False) + "\n"


def _number(name: str, value: Any) -> float:
    if not isinstance(value, numbers.Number) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"metrics: {name} is {value!r} ({type(value).__name__}); log a number")
