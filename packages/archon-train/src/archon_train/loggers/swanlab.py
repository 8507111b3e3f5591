"""Logs to SwanLab."""

from __future__ import annotations

from collections.abc import Mapping

from archon_core.contracts.loggers import LoggedRun
from archon_train.loggers.options import SwanlabOptions

FOLDER = "swanlab"
MODES = {"cloud": "online"}
"""AReaL's names of modes -> those of SwanLab 0.10, where they differ."""


class SwanlabLogger:
    """A ``MetricsLogger``.

    Args:
        options: mode, project, names.
        run: whose.
    """

    def __init__(self, options: SwanlabOptions, run: LoggedRun) -> None:
        import swanlab

        if options.api_key:
            swanlab.login(api_key=options.api_key)
        folder = options.logdir or str(run.folder / FOLDER)
        self._library = swanlab
        swanlab.init(
            mode=MODES.get(options.mode, options.mode),
            project=options.project or run.experiment,
            name=options.name or run.trial,
            config={**run.config, **(options.config or {})},
            log_dir=folder,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricsLogger``."""
        self._library.log(dict(values), step=step)

    def close(self) -> None:
        """See ``MetricsLogger``."""
        self._library.finish()
