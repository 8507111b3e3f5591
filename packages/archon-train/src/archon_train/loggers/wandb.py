"""Logs to Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping

from archon_core.contracts.loggers import LoggedRun
from archon_train.loggers.options import WandbOptions

STEP = "step"


class WandbLogger:
    """A ``MetricsLogger``. Curves are drawn over the optimizer steps of the rows, so that a resumed run, which repeats
    the steps after its checkpoint, continues them.

    Args:
        options: mode, project, names.
        run: whose.
    """

    def __init__(self, options: WandbOptions, run: LoggedRun) -> None:
        import wandb

        for variable, value in (("WANDB_BASE_URL", options.wandb_base_url), ("WANDB_API_KEY", options.wandb_api_key)):
            if value:
                os.environ[variable] = value
        names = f"{run.experiment}_{run.trial}"
        self._run = wandb.init(
            mode=options.mode,
            entity=options.entity,
            project=options.project or run.experiment,
            name=options.name or run.trial,
            job_type=options.job_type,
            group=options.group or names,
            notes=options.notes,
            tags=options.tags,
            config={**run.config, **(options.config or {})},
            id=f"{names}_{options.id_suffix}" if options.id_suffix is not None else None,
            resume="allow" if options.id_suffix is not None else None,
            dir=str(run.folder),
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricsLogger``."""
        self._run.log({**values, STEP: step})

    def close(self) -> None:
        """See ``MetricsLogger``."""
        self._run.finish()
