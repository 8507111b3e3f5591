"""Whole training runs on the ranks of a world, of which some roles have their own."""

from __future__ import annotations

import io
import os
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from rich.console import Console

from archon_core import registry
from archon_core.config.loading import to_yaml
from archon_core.plugins import AlgorithmSpec
from archon_core.ranks.ranks import Ranks
from archon_core.ranks.role_link import ending
from archon_core.ranks.role_ranks import ACTOR, RoleRanks
from archon_engine.distributed.process_group import JoinedRanks
from archon_engine.distributed.role_channels import join_role, link_roles
from archon_train.cli.role_process import end_roles, serve_role, start_roles
from archon_train.cluster import role_ranks
from archon_train.experiment import load_config
from archon_train.preflight import plan_run
from archon_train.run.context import RunContext
from archon_train.run.folder import RunFolder
from archon_train.run.interrupt import StopSignal
from archon_train.run.metrics import MetricsLog, NoMetrics
from archon_train.run.progress import NoProgress, Progress

LIMIT = timedelta(seconds=120)


def train(file: Path, trial: str, overrides: tuple[str, ...], stop_after: int | None = None) -> None:
    """A run on this world's ranks, up to a request to stop if there is one."""
    os.chdir(file.parent)  # has the reward
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    loaded = load_config(file, [f"trial_name={trial}", f"cluster.n_gpus_per_node={size}", *overrides])
    plan = plan_run(loaded, registry())
    assert plan.can_run, plan.obstacles
    trainer = role_ranks(plan.shares)
    assert sum(part.size for part in trainer) == size
    joined, own = JoinedRanks(Ranks()), trainer[0]
    if size > 1:
        dist.destroy_process_group()
        store = dist.FileStore(str(file.parent / f"{trial}-{loaded.config.trainer.resume}.store"), size)
        own = join_role(store, rank, trainer, "gloo", LIMIT)
        joined = JoinedRanks(Ranks.of_process_group(), link_roles(store, rank, trainer))
    try:
        _run(loaded, own, joined, stop_after)
    except KeyboardInterrupt:
        assert stop_after is not None


def _run(loaded, own: RoleRanks, joined: JoinedRanks, stop_after: int | None) -> None:
    config, stop = loaded.config, StopSignal()
    if own.role != ACTOR:
        serve_role(loaded, own.role, joined, stop)
        return
    place = (config.cluster.fileroot, config.experiment_name, config.trial_name)
    folder = RunFolder.at(*place)
    with ExitStack() as stack:
        stack.enter_context(ending(joined.links))
        output, metrics, progress = io.StringIO(), NoMetrics(), NoProgress()
        if joined.ranks.is_first:
            RunFolder.open(*place, resume=config.trainer.resume)
            folder.config.write_text(to_yaml(config), encoding="utf-8")
            output = stack.enter_context((folder.path / "output.txt").open("a"))
            metrics = stack.enter_context(MetricsLog(folder, resume_step=folder.latest_step()))
            progress = Progress(Console(file=output))
        log = metrics.log

        def log_and_stop(step, row):
            log(step, row)
            if step == stop_after:
                stop.request()

        metrics.log = log_and_stop
        run = RunContext(
            config,
            folder,
            metrics,
            progress,
            stop,
            [],
            explicit=loaded.explicit,
            ranks=joined.ranks,
            links=joined.links,
        )
        start_roles(joined.links, config.trainer.resume)
        spec = registry().get(AlgorithmSpec, config.algorithm)
        try:
            spec.load_trainer()(run, spec.load()).fit()
        except KeyboardInterrupt:
            end_roles(joined.links, stop.exit_code)
            raise
        end_roles(joined.links, 0)
