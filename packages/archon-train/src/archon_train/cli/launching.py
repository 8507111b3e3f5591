"""How ``archon train`` starts the ranks of a run, and what it says when they have ended."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from archon_core.cli.console import print_remark
from archon_core.config.loading import LoadedConfig
from archon_core.errors import USER_ERROR
from archon_train.cli.training import explain_interruption, open_folder
from archon_train.launch.first_failure import (
    RankExit,
    explain,
    first_to_fail,
    is_worth_another_try,
    shared_error,
)
from archon_train.run.folder import RunFolder
from archon_train.run.interrupt import SAME_SIGNAL_SECONDS, StopSignal


def launch_ranks(loaded: LoadedConfig, arguments: Sequence[str], *, n_ranks: int, resume_command: str) -> int:
    """Start the ranks on this machine and wait for them; returns the exit code.

    When a rank dies, all of them are started again from the run's last checkpoint, ``trainer.max_restarts`` times.

    Args:
        loaded: a configuration that nothing stops.
        arguments: of ``archon``, for every rank.
        n_ranks: how many.
        resume_command: what to tell a user who interrupts the run.

    Raises:
        ConfigError: the run folder cannot be used; see ``open_folder``.
    """
    with open_folder(loaded) as run:  # mistakes are told before seconds go by; the first rank will hold it
        folder, logs = run.folder, _new_log_folder(run.folder)
    where = f"; the output of all but the first goes to {logs}" if n_ranks > 1 else ""
    print_remark(f"{n_ranks}{where}", label="ranks: ", style="bold")
    most, arguments = loaded.config.trainer.max_restarts, list(arguments)
    with StopSignal(raises=False, same_within=SAME_SIGNAL_SECONDS) as stop:
        from archon_train.launch.local import run_ranks  # imports torch

        for n_restarts in itertools.count():
            exits = run_ranks(arguments, n_ranks=n_ranks, logs=logs, stop=stop) if not stop.requested else []
            failed = _failure(exits, stop)
            if failed is None or n_restarts == most or stop.requested or not is_worth_another_try(failed):
                break
            _report_restart(failed, n_ranks, folder, n_restarts + 1, most)
            logs = _new_log_folder(folder)
            if "--resume" not in arguments:
                arguments.append("--resume")
        return _report(exits, stop, n_ranks, folder, resume_command)


def _new_log_folder(folder: RunFolder) -> Path:
    """A folder that no other start of this run writes to, so that a resumed run keeps the logs from before."""
    for number in itertools.count(1):
        path = folder.path / "logs" / f"start-{number}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise AssertionError


def _report(exits: Sequence[RankExit], stop: StopSignal, n_ranks: int, folder: RunFolder, resume_command: str) -> int:
    """Say how the run ended, unless it ended well; returns the exit code."""
    failed = _failure(exits, stop)
    if failed is None and not stop.insisted and {exit.code for exit in exits} == {0}:
        return 0
    _leave_progress_line()
    if failed is None:
        return _report_stop(exits, stop, folder, resume_command)
    return _report_failure(failed, exits, n_ranks)


def _leave_progress_line() -> None:
    """Begin a line of our own: a progress line whose process was killed hides the cursor and ends nowhere."""
    console = Console(stderr=True)
    if console.is_terminal:
        console.show_cursor()
        console.line()


def _report_restart(failed: RankExit, n_ranks: int, folder: RunFolder, number: int, most: int) -> None:
    """Say which rank died, and from where all of them go on."""
    _leave_progress_line()
    _show_traceback(failed)
    step = folder.latest_step()
    start = "from the beginning, since there is no checkpoint yet" if step is None else f"from step {step}"
    print_remark(
        f"{explain(failed, n_ranks)}\nall ranks start again {start}",
        label=f"restart {number} of {most}: ",
        style="bold",
    )


def _failure(exits: Sequence[RankExit], stop: StopSignal) -> RankExit | None:
    """The rank that made the run fail, or ``None`` when it ended well or was stopped."""
    first = first_to_fail(exits)
    if first is None or stop.insisted or not any(exit.failed for exit in exits):
        return None
    # A rank that was starting up had no handler for the signal yet, and ends without a word.
    was_stopped = stop.requested and first.error is None and first.code in (1, *_ends_by(stop.number))
    return None if was_stopped else first


def _ends_by(number: int | None) -> tuple[int, ...]:
    return () if number is None else (-number, 128 + number)


def _report_stop(exits: Sequence[RankExit], stop: StopSignal, folder: RunFolder, resume_command: str) -> int:
    """Say what is left of an interrupted run, unless its first rank has said so; returns the exit code."""
    code = stop.exit_code or max(exit.code for exit in exits)
    said = any(exit.rank == 0 and exit.code in (128 + signal.SIGINT, 128 + signal.SIGTERM) for exit in exits)
    if not said:
        print_remark(explain_interruption(folder, resume_command), label="interrupted: ", style="bold yellow")
    return code


def _report_failure(first: RankExit, exits: Sequence[RankExit], n_ranks: int) -> int:
    """Say which rank failed first, and why, as the last thing that is printed; returns the exit code."""
    _show_traceback(first)
    shared = shared_error(exits, n_ranks)
    print_remark(shared.message if shared else explain(first, n_ranks), label="error: ", style="bold red")
    return USER_ERROR if first.error is not None and first.error.kind == "user" else 1


def _show_traceback(failed: RankExit) -> None:
    """Print where a rank failed, unless it was a user's mistake, whose message says it all."""
    error, asked = failed.error, os.environ.get("ARCHON_TRACEBACK", "0") not in ("", "0")
    if error is not None and (error.kind != "user" or asked):
        print_remark(error.traceback, label=f"rank {failed.rank}: ", style="bold")
