"""The metrics of a run: ``metrics.jsonl``, and the loggers that the user has switched on.

Every row is flushed. A resumed run drops the rows after its checkpoint, so the file reads as if the run had never
stopped.
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from archon_core.contracts.loggers import MetricsLogger
from archon_core.run_files.metrics import read_metrics
from archon_engine.checkpoint.publication import publish_text
from archon_train.run.folder import RunFolder


class MetricsLog:
    """Writes rows of numbers. Close it, or use it as a context manager.

    A logger that fails while the run trains is left out from then on: its curves are worth less than the run.

    Args:
        folder: the run folder.
        resume_step: step of the checkpoint to resume from; rows of later steps are dropped. ``None`` for a new run,
            which drops all rows.
        loggers: name -> logger that gets every row.
        note: prints a line for the user.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        resume_step: int | None,
        loggers: Mapping[str, MetricsLogger] | None = None,
        note: Callable[[str], None] = print,
    ) -> None:
        rows = (
            [] if resume_step is None else [row for row in read_metrics(folder.metrics) if row["step"] <= resume_step]
        )
        publish_text(folder.metrics, "".join(_encode_row(row) for row in rows))
        self._file = folder.metrics.open("a", encoding="utf-8")
        self._loggers = dict(loggers or {})
        self._note = note

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
        found = {name: _number(name, value) for name, value in values.items()}
        self._file.write(_encode_row({"step": step, **found}))
        self._file.flush()
        for name, logger in [*self._loggers.items()]:
            self._attempt(name, lambda logger=logger: logger.log(step, found))

    def close(self) -> None:
        """Close the file and the loggers."""
        self._file.close()
        for name, logger in [*self._loggers.items()]:
            self._attempt(name, logger.close)
        self._loggers.clear()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _attempt(self, name: str, call: Callable[[], None]) -> None:
        """Call a logger; if it raises, tell the user and leave it out."""
        try:
            call()
        except Exception as error:  # libraries raise their own types
            del self._loggers[name]
            self._note(
                f"{name} failed ({type(error).__name__}: {error}) and gets no more metrics; metrics.jsonl has all"
            )


class NoMetrics(MetricsLog):
    """Writes nothing: the metrics of a rank that is not the first."""

    def __init__(self) -> None:
        """Open no file."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Ignore the row; the first rank writes it."""

    def close(self) -> None:
        """Do nothing."""


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
