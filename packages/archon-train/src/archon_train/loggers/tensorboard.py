"""Writes TensorBoard files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archon_core.contracts.loggers import LoggedRun
from archon_train.loggers.options import TensorBoardOptions

FOLDER = "tensorboard"


class TensorBoardLogger:
    """A ``MetricsLogger``. The first row creates the file.

    Args:
        options: where.
        run: whose.
    """

    def __init__(self, options: TensorBoardOptions, run: LoggedRun) -> None:
        self._folder = options.path or str(run.folder / FOLDER)
        self._resume_step = run.resume_step
        self._writer: Any = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricsLogger``."""
        if self._writer is None:
            self._writer = self._open()
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=step)
        self._writer.flush()

    def close(self) -> None:
        """See ``MetricsLogger``."""
        if self._writer is not None:
            self._writer.close()

    def _open(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides the events that the crashed run wrote after its last checkpoint.
        purge_step = 0 if self._resume_step is None else self._resume_step + 1
        return SummaryWriter(self._folder, purge_step=purge_step)
