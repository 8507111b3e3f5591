"""Whole training runs on the ranks of a world, whose forkserver has imported torch once for all of them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from archon_core import registry
from archon_core.config.loading import to_yaml
from archon_core.plugins import AlgorithmSpec
from archon_core.ranks.ranks import Ranks
from archon_train.experiment import load_config
from archon_train.run.context import RunContext
from archon_train.run.folder import RunFolder
from archon_train.run.interrupt import StopSignal
from archon_train.run.metrics import MetricsLog, NoMetrics
from archon_train.run.progress import NoProgress, Progress
from archon_train.run.recordings import Recordings


def train(file: Path, layout: str, trial: str, overrides: tuple[str, ...] = (), stop_after: int | None = None) -> bool:
    """A run on this world's ranks; whether it was asked to stop before its end."""
    ranks = Ranks.of_process_group()
    given = [f"trial_name={trial}", f"actor.backend=archon:{layout}", f"cluster.n_gpus_per_node={ranks.size}"]
    config = load_config(file, [*given, *overrides]).config
    folder = RunFolder.at(config.cluster.fileroot, config.experiment_name, config.trial_name)
    stop = StopSignal()
    with ExitStack() as stack:
        if ranks.is_first:
            RunFolder.open(
                config.cluster.fileroot, config.experiment_name, config.trial_name, resume=config.trainer.resume
            )
            folder.config.write_text(to_yaml(config), encoding="utf-8")
            output = stack.enter_context((folder.path / "output.txt").open("a"))
            metrics = stack.enter_context(MetricsLog(folder, resume_step=folder.latest_step()))
            progress, recordings = Progress(Console(file=output)), Recordings(folder.path)
        else:
            metrics, progress, recordings = NoMetrics(), NoProgress(), Recordings()
        log = metrics.log

        def log_and_stop(step, row):
            log(step, row)
            # The last rank alone hears it.
            if step == stop_after and ranks.rank == ranks.size - 1:
                stop.request()

        metrics.log = log_and_stop
        spec = registry().get(AlgorithmSpec, config.algorithm)
        run = RunContext(config, folder, metrics, progress, stop, [], ranks=ranks, recordings=recordings)
        try:
            spec.load_trainer()(run, spec.load()).fit()
        except KeyboardInterrupt:
            return True
    return False
