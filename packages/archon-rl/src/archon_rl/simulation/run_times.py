"""Reads the times of ``archon simulate`` from a run's metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from archon_core.errors import ConfigError, DataError
from archon_core.layout import parse_layout
from archon_core.run_files.metrics import read_metrics
from archon_train.experiment import load_config

BUSY = "collector/busy_seconds"
WAITED = "collector/waited_seconds"
FINISHED = "collector/finished"

N_SKIPPED = 1
"""Steps at the start that are left out: compilers, allocators and servers warm up."""


@dataclass(frozen=True)
class RunTimes:
    """Means over the steps of a run.

    Attributes:
        options: fields of a ``Workload``, without ``group_seconds``.
        sampling_seconds: time in which the servers sample a batch while training waits for it.
        steps_per_second: measured.
        staleness: the run's ``rollout.max_head_offpolicyness``.
    """

    options: dict[str, Any]
    sampling_seconds: float
    steps_per_second: float
    staleness: int


def read_run_times(folder: Path) -> RunTimes:
    """The times of the run in ``folder``.

    Raises:
        ConfigError: there is no run, or it has not sampled for at least two steps.
    """
    if not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"--from: found no config.yaml in {str(folder)!r}; allowed is the folder of a run, "
            "<fileroot>/<experiment_name>/<trial_name>"
        )
    config = load_config(folder / "config.yaml").config
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "time/rollout" in row][N_SKIPPED:]
    if not rows:
        raise ConfigError(
            f"--from: found no step after the first in {str(folder / 'metrics.jsonl')!r}; allowed is a run of an "
            "algorithm that samples, such as grpo, with two steps or more"
        )
    try:
        return _times(config, rows)
    except KeyError as error:
        raise DataError(f"{folder / 'metrics.jsonl'}: found no {error.args[0]!r} in the row of a step") from error


def _times(config: Any, rows: list[Mapping[str, float]]) -> RunTimes:
    step, publish = (mean(row[f"time/{phase}"] for row in rows) for phase in ("step", "publish"))
    rejected = sum(row.get("rejected_prompts", 0.0) for row in rows)
    drawn = sum(row.get("prompts", config.data.batch_size) for row in rows)
    if "staleness" in rows[0]:
        finished = sum(row[FINISHED] for row in rows)
        sampling = sum(row[BUSY] for row in rows) / finished * drawn / len(rows)
        waited = mean(row[WAITED] for row in rows)
    else:
        # Without a collector the trainer's ranks sample.
        sampling = waited = mean(row["time/rollout"] + row.get("time/reward", 0.0) for row in rows)
    options = {
        "batch_size": config.data.batch_size,
        "train_seconds": step - waited - publish,
        "publish_seconds": publish,
        "rejected": rejected / drawn,
        "max_rounds": 1 if config.dynamic_bs else config.actor.dynamic_sampling_max_rounds,
        "max_concurrent_rollouts": config.rollout.max_concurrent_rollouts,
        "queue_size": config.rollout.queue_size,
        **_places(config),
    }
    return RunTimes(options, sampling, 1 / step, config.rollout.max_head_offpolicyness)


def _places(config: Any) -> dict[str, int]:
    """Servers, and the groups that each samples at a time, for Archon's own engines."""
    kind, _, sizes = config.rollout.backend.partition(":")
    if kind not in ("local", "served"):
        return {}
    servers = parse_layout(f"archon:{sizes}").dims["d"] if sizes else 1
    return {"servers": servers, "concurrency": max(1, config.rollout.max_batch_size // config.gconfig.n_samples)}
