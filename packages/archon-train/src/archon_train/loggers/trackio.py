"""Logs to Trackio."""

from __future__ import annotations

from collections.abc import Mapping

from archon_core.contracts.loggers import LoggedRun
from archon_train.loggers.options import TrackioOptions


class TrackioLogger:
    """A ``MetricsLogger``. A resumed run continues the curves of its name.

    Args:
        options: mode, project, names.
        run: whose.
    """

    def __init__(self, options: TrackioOptions, run: LoggedRun) -> None:
        import trackio

        self._run = trackio.init(
            project=options.project or run.experiment,
            name=options.name or run.trial,
            space_id=options.space_id if options.mode == "online" else None,
            config=dict(run.config),
            resume="never" if run.resume_step is None else "allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricsLogger``."""
        self._run.log(metrics=dict(values), step=step)

    def close(self) -> None:
        """See ``MetricsLogger``."""
        self._run.finish()
