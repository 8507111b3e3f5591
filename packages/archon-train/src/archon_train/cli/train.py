"""``archon train``: reads the configuration, reports all obstacles at once, then runs it."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from archon_core.cli.console import print_json, print_remark, print_text
from archon_core.config.loading import LoadedConfig, explain_problems
from archon_core.contracts.decisions import Decision
from archon_core.errors import USER_ERROR, ArchonError, ConfigError
from archon_core.plugins import LauncherSpec, registry
from archon_core.ranks.environment import rank_environment
from archon_core.ranks.role_ranks import ACTOR, ranks_of
from archon_train.cli.launching import launch_by, launch_here
from archon_train.cli.plan_report import (
    describe_obstacles,
    plan_data,
    print_decisions,
    print_obstacles,
    print_plan,
)
from archon_train.cli.training import run_training, set_aside
from archon_train.cluster import role_ranks
from archon_train.experiment import load_config
from archon_train.launch.rank import run_as_rank, started_by_archon
from archon_train.launch.world import (
    check_started,
    explain_machines,
    explain_servers_elsewhere,
    n_computing_at_once,
    ranks_needed,
    share_cores,
)
from archon_train.preflight import plan_run
from archon_train.run_plan import Obstacle, RunPlan
from archon_train.scheduling import scheduling_specs


def train(
    config: Annotated[Path, typer.Argument(help="YAML file in Archon's or AReaL's format.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Options to set, such as actor.optimizer.lr=1e-5; the last one wins.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the plan and all obstacles without starting anything. Exit code 2 for errors in the "
            "configuration, 0 if only this machine lacks something.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --dry-run: print the plan, or the errors of the file, as JSON.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the run folder's last checkpoint.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start a new run; renames the folder of an earlier run of this name.")
    ] = False,
) -> None:
    """Run the training that a YAML file describes."""
    command = ["train", str(config), *(overrides or [])]
    given = [*(overrides or []), *(["trainer.resume=true"] if resume else [])]
    if dry_run:
        raise typer.Exit(_print_dry_run(config, given, command, as_json=as_json))
    if as_json:
        raise ConfigError("--json: found without --dry-run; allowed for dry runs only; add --dry-run to print the plan")
    place = rank_environment()
    if place is None:
        raise typer.Exit(_start(_read(config, given), command, resume=resume, restart=restart))

    def work() -> int:
        loaded, plan = _read(config, given)
        check_started(place, plan.shares, command)
        trainer = role_ranks(plan.shares)
        if not started_by_archon():
            _set_variables(loaded, ranks_of(place.rank, trainer).role)
            loaded = _restarted_by_launcher(loaded)
            if place.rank == 0:
                _print_preliminaries(loaded, plan)
        resume_command = _resume_command(command)
        return run_training(loaded, resume_command=resume_command, place=place, trainer=trainer, restart=restart)

    run_as_rank(place, work)


def _print_dry_run(config: Path, overrides: list[str], command: list[str], *, as_json: bool) -> int:
    try:
        loaded = load_config(config, overrides, allow_missing=True)
    except ArchonError as error:
        if as_json:
            obstacles = tuple(Obstacle(text, "config") for text in explain_problems(error))
            print_json(plan_data(RunPlan(obstacles=obstacles), ()))
        raise
    plan = plan_run(loaded, registry())
    code = USER_ERROR if plan.is_wrong else 0
    decisions = (*loaded.decisions, *plan.decisions, *plan.engine_decisions)
    if as_json:
        print_json(plan_data(plan, decisions))
        return code
    print_text(loaded.to_yaml())
    print_plan(plan, loaded)
    if plan.shares and loaded.config.scheduler.type == "local":
        elsewhere = explain_machines(plan.shares, loaded.config.cluster, command)
        for text in filter(None, (elsewhere, explain_servers_elsewhere(plan.processes))):
            print_text(f"note: {text}\n")
    print_decisions(decisions)
    if not plan.can_run:
        print_obstacles(plan)
    return code


def _read(config: Path, overrides: list[str]) -> tuple[LoadedConfig, RunPlan]:
    """The configuration, with the decisions of its plan, and the plan.

    Raises:
        ConfigError: with all obstacles.
    """
    loaded = load_config(config, overrides, allow_missing=True)
    plan = plan_run(loaded, registry())
    if not plan.can_run:
        raise ConfigError("\n".join(describe_obstacles(plan)))
    return replace(loaded, decisions=(*loaded.decisions, *plan.decisions)), plan


def _print_preliminaries(loaded: LoadedConfig, plan: RunPlan) -> None:
    for note in plan.notes:
        print_remark(note, label="note: ")
    print_decisions(loaded.decisions)


def _set_variables(loaded: LoadedConfig, role: str) -> None:
    """Set the variables of a role's processes in this one, before torch reads them."""
    os.environ.update(_variables(loaded, role))


def _variables(loaded: LoadedConfig, role: str) -> dict[str, str]:
    spec = scheduling_specs(loaded.config, (role,)).get(role)
    return {} if spec is None else spec.env_vars


def _restarted_by_launcher(loaded: LoadedConfig) -> LoadedConfig:
    """``loaded``, with a decision that ``trainer.max_restarts`` has no effect if it is set."""
    asked = loaded.config.trainer.max_restarts
    if asked == 0:
        return loaded
    reason = "another launcher started the ranks and restarts them; with torchrun, use --max-restarts and"
    decision = Decision("trainer.max_restarts", str(asked), "0", f"{reason} trainer.auto_resume=true")
    return replace(loaded, decisions=(*loaded.decisions, decision))


def _start(read: tuple[LoadedConfig, RunPlan], command: list[str], *, resume: bool, restart: bool) -> int:
    """Run in this process, start local ranks, or call the launcher of ``scheduler.type``; returns the exit code."""
    loaded, plan = read
    kind = loaded.config.scheduler.type
    if kind == "local" and (elsewhere := explain_machines(plan.shares, loaded.config.cluster, command)):
        raise ConfigError(elsewhere)
    _print_preliminaries(loaded, plan)
    if restart:
        set_aside(loaded.config)
    resume_command = _resume_command(command)
    trainer = role_ranks(plan.shares)
    n_ranks = ranks_needed(plan.shares)
    if kind != "local":
        _, source, *overrides = command
        return launch_by(
            registry().get(LauncherSpec, kind),
            loaded,
            plan.processes,
            Path(source),
            overrides,
            n_ranks=n_ranks,
            resume=resume,
            resume_command=resume_command,
            trainer=trainer,
        )
    n_processes = n_computing_at_once(n_ranks, plan.processes, loaded.config.rollout.max_head_offpolicyness)
    if n_processes > n_ranks:
        share_cores(n_processes)
    # A killed process cannot restart itself, so a single rank with restarts is launched as a child, too.
    if n_ranks == 1 and loaded.config.trainer.max_restarts == 0:
        _set_variables(loaded, ACTOR)
        return run_training(loaded, resume_command=resume_command)
    arguments = [*command, *(["--resume"] if resume else [])]
    variables = [_variables(loaded, part.role) for part in trainer for _ in part.ranks]
    return launch_here(
        loaded, arguments, n_ranks=n_ranks, resume_command=resume_command, variables=variables, trainer=trainer
    )


def _resume_command(command: list[str]) -> str:
    kept = [part for part in command if not part.startswith("trainer.resume=")]
    return shlex.join(["archon", *kept, "--resume"])
