"""``archon train``: read the configuration, say everything that stops it, then run it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archon_core.cli.console import print_remark, print_text
from archon_core.cli.plan_report import print_decisions, print_obstacles, print_plan
from archon_core.config.decisions import Decision
from archon_core.config.loading import LoadedConfig, load_config, to_yaml
from archon_core.config.preflight import plan_run
from archon_core.errors import ConfigError
from archon_core.plugins import AlgorithmSpec, LauncherSpec, registry
from archon_core.run.changes import changes_since_start
from archon_core.run.folder import RunFolder
from archon_core.run.interrupt import StopSignal

if TYPE_CHECKING:
    from archon_core.config.schema import ExperimentConfig

USER_ERROR = 2


def train(
    config: Annotated[Path, typer.Argument(help="A YAML file, in Archon's form or AReaL's.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Options to set, such as actor.optimizer.lr=1e-5; a later one wins.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run, and what stops it; start nothing.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's last checkpoint.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew; an earlier run of this name is set aside, not deleted.")
    ] = False,
) -> None:
    """Train a model as a YAML file describes."""
    given = [*(overrides or []), *(["trainer.resume=true"] if resume else [])]
    loaded = load_config(config, given, allow_missing=True)
    plan = plan_run(loaded, registry())
    if dry_run:
        print_text(loaded.to_yaml())
        print_plan(plan, loaded)
        print_decisions(loaded.decisions)
    if not plan.can_run:
        print_obstacles(plan, dry_run=dry_run)
    if dry_run:
        raise typer.Exit(USER_ERROR if plan.is_wrong else 0)
    if not plan.can_run:
        raise typer.Exit(USER_ERROR)
    for note in plan.notes:
        print_remark(note, label="note: ")
    print_decisions(loaded.decisions)
    if restart:
        _set_aside(loaded.config)
    raise typer.Exit(_launch(loaded, resume_command=_resume_command(config, overrides or [])))


def _set_aside(config: ExperimentConfig) -> None:
    if config.trainer.resume:
        raise ConfigError("--restart and resuming: found both; one begins anew, the other goes on; use one of them")
    folder = RunFolder.at(config.cluster.fileroot, config.experiment_name, config.trial_name)
    aside = folder.set_aside()
    if aside is not None:
        print_remark(str(aside), label="earlier run set aside: ", style="bold")


def _launch(loaded: LoadedConfig, *, resume_command: str) -> int:
    """Run here, or hand over to the launcher that ``scheduler.type`` names; returns the exit code."""
    kind = loaded.config.scheduler.type
    if kind == "local":
        return run_training(loaded, resume_command=resume_command)
    launcher = registry().get(LauncherSpec, kind).load()
    return int(launcher(loaded.config, lambda: sys.exit(run_training(loaded, resume_command=resume_command))))


def run_training(loaded: LoadedConfig, *, resume_command: str) -> int:
    """Train to the end, or to the step in which Ctrl-C falls; returns the exit code.

    Args:
        loaded: a configuration that nothing stops.
        resume_command: what to tell a user who interrupts the run.

    Raises:
        ArchonError: as the trainer does.
    """
    with open_folder(loaded) as (folder, resumed, decisions):
        config = replace(loaded.config, trainer=replace(loaded.config.trainer, resume=resumed, auto_resume=False))
        if resumed:
            changes = changes_since_start(folder, to_yaml(config))
            print_decisions(changes)
            decisions += changes
        folder.write_config(to_yaml(config))
        folder.write_decisions(decisions)
        print_remark(str(folder.path), label="run folder: ", style="bold")
        stop = StopSignal()
        try:
            with stop:
                _fit(config, folder, decisions, loaded.explicit, stop)
        except KeyboardInterrupt:
            if not stop.requested:  # else the signal that asked first tells the exit code
                stop.request()
        finally:
            folder.write_decisions(decisions)
        if stop.requested:
            print_remark(explain_interruption(folder, resume_command), label="interrupted: ", style="bold yellow")
        return stop.exit_code


@contextmanager
def open_folder(loaded: LoadedConfig) -> Iterator[tuple[RunFolder, bool, list[Decision]]]:
    """The run folder, whether there is a checkpoint in it to go on from, and the decisions so far.

    Raises:
        ConfigError: the folder holds another run and this one does not resume it, there is nothing to resume, or
            another process is writing it.
    """
    config: ExperimentConfig = loaded.config
    decisions = list(loaded.decisions)
    asked = config.trainer.resume or config.trainer.auto_resume
    place = (config.cluster.fileroot, config.experiment_name, config.trial_name)
    if config.trainer.resume and not RunFolder.at(*place).path.is_dir():
        raise _nothing_to_resume(RunFolder.at(*place))
    with RunFolder.hold(*place, resume=asked) as folder:
        resumed = asked and folder.latest_step() is not None
        if config.trainer.resume and not resumed:
            if not folder.metrics.is_file():
                raise _nothing_to_resume(folder)
            reason = "the run stopped before its first checkpoint, so it starts again"
            decisions.append(Decision("trainer.resume", "true", "false", reason))
        elif config.trainer.auto_resume:
            found = f"step {folder.latest_step()}" if resumed else "no checkpoint"
            decisions.append(Decision("trainer.auto_resume", "true", f"resume={resumed}".lower(), f"found {found}"))
        yield folder, resumed, decisions


def _nothing_to_resume(folder: RunFolder) -> ConfigError:
    return ConfigError(
        f"trainer.resume: found no run in {folder.path}; leave --resume out to start one, or set cluster.fileroot, "
        "experiment_name and trial_name to those of the run to go on with"
    )


def explain_interruption(folder: RunFolder, resume_command: str) -> str:
    """What is left of a run that was interrupted, and how to go on with it."""
    step = folder.latest_step()
    if step is None:
        return f"there was no checkpoint yet (trainer.save_every says how often); to start again: {resume_command}"
    return f"the last checkpoint, {folder.checkpoint_path(step)}, is whole; to go on from step {step}: {resume_command}"


def _fit(config: Any, folder: RunFolder, decisions: list[Decision], explicit: frozenset[str], stop: StopSignal) -> None:
    # These import numpy, TensorBoard and the trainer: seconds that a dry run does not need.
    from archon_core.run.context import RunContext
    from archon_core.run.log import shown_log
    from archon_core.run.metrics import MetricsLog
    from archon_core.run.progress import Progress

    spec = registry().get(AlgorithmSpec, config.algorithm)
    trainer, algorithm = spec.load_trainer(), spec.load()
    resume_step = folder.latest_step() if config.trainer.resume else None
    with ExitStack() as stack:
        metrics = stack.enter_context(MetricsLog(folder, resume_step=resume_step, decisions=decisions))
        progress = stack.enter_context(Progress())
        stack.enter_context(shown_log(progress.note))
        run = RunContext(
            config=config,
            folder=folder,
            metrics=metrics,
            progress=progress,
            stop=stop,
            decisions=decisions,
            explicit=explicit,
        )
        trainer(run, algorithm).fit()


def _resume_command(config: Path, overrides: list[str]) -> str:
    import shlex

    kept = [override for override in overrides if not override.startswith("trainer.resume=")]
    return shlex.join(["archon", "train", str(config), *kept, "--resume"])
