"""Starts the ranks of a run for ``archon train``, by any launcher, and reports how they ended."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from archon_core.cli.console import print_remark
from archon_core.config.loading import LoadedConfig
from archon_core.contracts.launching import Launch, Launcher, LauncherSpec, ProcessPlan
from archon_core.errors import USER_ERROR
from archon_core.ranks.first_failure import (
    RankExit,
    explain,
    first_to_fail,
    is_worth_another_try,
    shared_error,
)
from archon_core.ranks.log_folder import new_log_folder
from archon_core.ranks.role_ranks import RoleRanks, ranks_of
from archon_train.cli.training import explain_interruption, open_folder
from archon_train.launch.local import run_ranks
from archon_train.run.folder import RunFolder
from archon_train.run.interrupt import SAME_SIGNAL_SECONDS, StopSignal


class LocalLauncher:
    """Starts the ranks on this machine; implements ``contracts.launching.Launcher``.

    Args:
        arguments: of ``archon``, for every rank.
        n_ranks: number of ranks.
        folder: the run folder.
        stop: an entered ``StopSignal`` that does not raise.
        variables: environment variables of each rank.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        n_ranks: int,
        folder: RunFolder,
        stop: StopSignal,
        variables: Sequence[Mapping[str, str]] = (),
    ) -> None:
        self._arguments, self._n_ranks, self._folder, self._stop = arguments, n_ranks, folder, stop
        self._variables = variables
        self._logs = new_log_folder(self._folder.path)
        where = f"; the output of all but the first goes to {self._logs}" if n_ranks > 1 else ""
        print_remark(f"{n_ranks}{where}", label="ranks: ", style="bold")
        self._started = False

    def run(self, *, resume: bool) -> list[RankExit]:
        """Start the ranks and wait for them."""
        if self._started:
            self._logs = new_log_folder(self._folder.path)
        self._started = True
        more = ["--resume"] if resume and "--resume" not in self._arguments else []
        return run_ranks(
            [*self._arguments, *more],
            n_ranks=self._n_ranks,
            logs=self._logs,
            stop=self._stop,
            variables=self._variables,
        )

    def close(self) -> None:
        """Nothing is left to end."""


def launch_here(
    loaded: LoadedConfig,
    arguments: Sequence[str],
    *,
    n_ranks: int,
    resume_command: str,
    variables: Sequence[Mapping[str, str]] = (),
    trainer: Sequence[RoleRanks] = (),
) -> int:
    """``launch_ranks`` on this machine.

    Args:
        loaded: a configuration whose plan can run.
        arguments: of ``archon``, for every rank.
        n_ranks: number of ranks.
        resume_command: shown to a user who interrupts the run.
        variables: environment variables of each rank.
        trainer: the ranks by role.
    """

    def build(folder: RunFolder, stop: StopSignal) -> Launcher:
        return LocalLauncher(arguments, n_ranks, folder, stop, variables)

    resume = "--resume" in arguments
    return launch_ranks(loaded, build, n_ranks=n_ranks, resume=resume, resume_command=resume_command, trainer=trainer)


def launch_by(
    spec: LauncherSpec,
    loaded: LoadedConfig,
    plan: ProcessPlan,
    source: Path,
    overrides: Sequence[str],
    *,
    n_ranks: int,
    resume: bool,
    resume_command: str,
    trainer: Sequence[RoleRanks] = (),
) -> int:
    """``launch_ranks`` with the launcher of a plugin.

    Args:
        spec: of the launcher.
        loaded: a configuration whose plan can run.
        plan: its processes.
        source: its YAML file.
        overrides: of the file.
        n_ranks: number of the trainer's ranks.
        resume: whether the first start continues from the last checkpoint.
        resume_command: shown to a user who interrupts the run.
        trainer: the ranks by role.
    """
    factory = spec.load()

    def build(folder: RunFolder, stop: StopSignal) -> Launcher:
        launch = Launch(loaded.config, plan, source.absolute(), overrides, folder.path.absolute(), stop, _note)
        built: Launcher = factory(launch)
        return built

    return launch_ranks(loaded, build, n_ranks=n_ranks, resume=resume, resume_command=resume_command, trainer=trainer)


def _note(text: str) -> None:
    print_remark(text, label="")


def launch_ranks(
    loaded: LoadedConfig,
    build: Callable[[RunFolder, StopSignal], Launcher],
    *,
    n_ranks: int,
    resume: bool,
    resume_command: str,
    trainer: Sequence[RoleRanks] = (),
) -> int:
    """Start the ranks and wait for them; returns the exit code.

    If a rank dies, all ranks restart from the run's last checkpoint, up to ``trainer.max_restarts`` times.

    Args:
        loaded: a configuration whose plan can run.
        build: builds the launcher in the run's folder.
        n_ranks: number of ranks.
        resume: whether the first start continues from the last checkpoint.
        resume_command: shown to a user who interrupts the run.
        trainer: the ranks by role, to name the role of one that failed.

    Raises:
        ConfigError: the run folder cannot be used; see ``open_folder``.
    """
    with open_folder(loaded) as run:  # reports errors before torch is imported; the first rank locks it later
        folder = run.folder
    most = loaded.config.trainer.max_restarts
    with StopSignal(raises=False, same_within=SAME_SIGNAL_SECONDS) as stop:
        launcher = build(folder, stop)
        try:
            for n_restarts in itertools.count():
                ended = launcher.run(resume=resume or n_restarts > 0) if not stop.requested else []
                exits = [_with_role(exit, trainer) for exit in ended]
                failed = _failure(exits, stop)
                if failed is None or n_restarts == most or stop.requested or not is_worth_another_try(failed):
                    break
                _report_restart(failed, n_ranks, folder, n_restarts + 1, most)
        finally:
            launcher.close()
        return _report(exits, stop, n_ranks, folder, resume_command)


def _with_role(exit: RankExit, trainer: Sequence[RoleRanks]) -> RankExit:
    """``exit`` with the role of its rank, if roles have their own ranks."""
    return replace(exit, role=ranks_of(exit.rank, trainer).role) if len(trainer) > 1 else exit


def _report(exits: Sequence[RankExit], stop: StopSignal, n_ranks: int, folder: RunFolder, resume_command: str) -> int:
    """Report a run that did not end well; returns the exit code."""
    failed = _failure(exits, stop)
    if failed is None and not stop.insisted and {exit.code for exit in exits} == {0}:
        return 0
    _leave_progress_line()
    if failed is None:
        return _report_stop(exits, stop, folder, resume_command)
    return _report_failure(failed, exits, n_ranks)


def _leave_progress_line() -> None:
    """Start a new line: a killed process leaves its progress line unfinished and the cursor hidden."""
    console = Console(stderr=True)
    if console.is_terminal:
        console.show_cursor()
        console.line()


def _report_restart(failed: RankExit, n_ranks: int, folder: RunFolder, number: int, most: int) -> None:
    """Report which rank died, and the step that all ranks restart from."""
    _leave_progress_line()
    _show_traceback(failed)
    step = folder.latest_step()
    start = "from the beginning, since there is no checkpoint yet" if step is None else f"from step {step}"
    print_remark(
        f"{explain(failed, n_ranks)}\nall ranks restart {start}",
        label=f"restart {number} of {most}: ",
        style="bold",
    )


def _failure(exits: Sequence[RankExit], stop: StopSignal) -> RankExit | None:
    """The rank that made the run fail; ``None`` if the run ended well or was stopped."""
    first = first_to_fail(exits)
    if first is None or stop.insisted or not any(exit.failed for exit in exits):
        return None
    # A rank that is still starting has no handler for the signal yet, and ends without a message.
    was_stopped = stop.requested and first.error is None and first.code in (1, *_ends_by(stop.number))
    return None if was_stopped else first


def _ends_by(number: int | None) -> tuple[int, ...]:
    return () if number is None else (-number, 128 + number)


def _report_stop(exits: Sequence[RankExit], stop: StopSignal, folder: RunFolder, resume_command: str) -> int:
    """Report the last checkpoint of an interrupted run, unless its first rank did; returns the exit code."""
    code = stop.exit_code or max(exit.code for exit in exits)
    reported = any(exit.rank == 0 and exit.code in (128 + signal.SIGINT, 128 + signal.SIGTERM) for exit in exits)
    if not reported:
        print_remark(explain_interruption(folder, resume_command), label="interrupted: ", style="bold yellow")
    return code


def _report_failure(first: RankExit, exits: Sequence[RankExit], n_ranks: int) -> int:
    """Report which rank failed first, and why, as the last output; returns the exit code."""
    _show_traceback(first)
    shared = shared_error(exits, n_ranks)
    print_remark(shared.message if shared else explain(first, n_ranks), label="error: ", style="bold red")
    return USER_ERROR if first.error is not None and first.error.kind == "user" else 1


def _show_traceback(failed: RankExit) -> None:
    """Print the traceback of a rank, except for a user error, whose message suffices."""
    error, asked = failed.error, os.environ.get("ARCHON_TRACEBACK", "0") not in ("", "0")
    if error is not None and (error.kind != "user" or asked):
        print_remark(error.traceback, label=f"rank {failed.rank}: ", style="bold")
