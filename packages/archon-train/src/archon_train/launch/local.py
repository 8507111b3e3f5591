"""The local launcher: starts and watches the ranks of a run on this machine.

Ranks are plain child processes, so that the launcher needs torch only for the store through which they find each other.
It imports torch while the ranks do. torch's own launcher would let them wait for that, gives the other ranks 30 seconds
to end when one dies, and does not distinguish a requested stop from a failure.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from archon_core.errors import USER_ERROR
from archon_core.ranks.environment import LAUNCHER_PID
from archon_core.ranks.error_file import ERROR_FILE, read_error
from archon_core.ranks.first_failure import RankExit
from archon_core.ranks.loopback_store import LOCALHOST, listen_on_loopback, serve_store
from archon_train.launch.world import threads_per_rank
from archon_train.run.interrupt import StopSignal

POLL_SECONDS = 0.05

GRACE_SECONDS = 1.5
"""Time for the other ranks to write their errors after one has died, before they are killed."""

MISTAKE_GRACE_SECONDS = 5
"""The same after a user error, which the other ranks will raise, too, but perhaps after slow imports."""

REAP_SECONDS = 10
"""Time to wait for a killed process. A process that hangs in a device driver cannot be reaped."""


def run_ranks(
    arguments: Sequence[str],
    *,
    n_ranks: int,
    logs: Path,
    stop: StopSignal,
    variables: Sequence[Mapping[str, str]] = (),
) -> list[RankExit]:
    """Start the ranks and wait for them; leaves no process behind.

    The first signal that ``stop`` catches is forwarded to every rank, which stop after their step; the second signal,
    or the failure of a rank, kills them.

    Args:
        arguments: of ``archon``, for every rank.
        n_ranks: number of ranks.
        logs: an empty folder for the output of all ranks but the first, which writes to the terminal.
        stop: an entered ``StopSignal`` that does not raise.
        variables: further environment variables of each rank.

    Returns:
        The ranks that ended by themselves, without the ranks that this launcher killed.
    """
    with listen_on_loopback() as listener:
        port = listener.getsockname()[1]
        more = variables or [{}] * n_ranks
        environments = [_rank_environment(rank, n_ranks, port, more[rank]) for rank in range(n_ranks)]
        processes = _start(arguments, logs, environments)
        store = None
        try:
            # Connections of ranks that are faster wait for the store.
            store = serve_store(listener)
            return _watch(processes, logs, stop)
        finally:
            _kill(processes)
            del store  # last: running ranks would treat its end as a failure


def _log_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.log"


def _error_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.error.json"


def _start(arguments: Sequence[str], logs: Path, environments: Sequence[Mapping[str, str]]) -> list[subprocess.Popen]:
    """The processes of the ranks, each the leader of a process group."""
    # Without -P, `python -m` would put the working directory first on sys.path, which `archon` does not.
    isolated = () if sys.path[0] in ("", os.getcwd()) else ("-P",)
    command = [sys.executable, *isolated, "-m", "archon_core.cli", *arguments]
    sys.stdout.flush()
    sys.stderr.flush()
    processes: list[subprocess.Popen] = []
    try:
        for rank, environment in enumerate(environments):
            own = {**os.environ, **environment, ERROR_FILE: str(_error_path(logs, rank))}
            with _log_path(logs, rank).open("wb") if rank else nullcontext() as log:
                merged = subprocess.STDOUT if rank else None
                processes.append(subprocess.Popen(command, env=own, stdout=log, stderr=merged, start_new_session=True))
    except BaseException:
        _kill(processes)
        raise
    return processes


def _rank_environment(rank: int, n_ranks: int, port: int, more: Mapping[str, str]) -> dict[str, str]:
    place = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(n_ranks),
        "LOCAL_WORLD_SIZE": str(n_ranks),
        "MASTER_ADDR": LOCALHOST,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # to torch: all ranks are clients of the launcher's store
        LAUNCHER_PID: str(os.getpid()),
    }
    defaults = {
        "OMP_NUM_THREADS": str(threads_per_rank(n_ranks)),
        "PYTHONUNBUFFERED": "1",  # keep the last lines of a killed rank
    }
    return {name: os.environ.get(name, value) for name, value in defaults.items()} | {**more, **place}


def _watch(processes: Sequence[subprocess.Popen], logs: Path, stop: StopSignal) -> list[RankExit]:
    """Wait until all ranks have ended, or must be killed."""
    running = dict(enumerate(processes))
    ended: list[RankExit] = []
    passed_on = False
    deadline: float | None = None
    while running and not stop.insisted and (deadline is None or time.monotonic() < deadline):
        if stop.number is not None and not passed_on:
            for process in running.values():
                process.send_signal(stop.number)
            passed_on = True
        for rank, code in [(rank, process.poll()) for rank, process in running.items()]:
            if code is not None:
                log = _log_path(logs, rank) if rank else None
                exit = RankExit(rank, running.pop(rank).pid, code, time.time(), log=log)
                ended.append(exit)
                if exit.failed and deadline is None:
                    deadline = time.monotonic() + (MISTAKE_GRACE_SECONDS if code == USER_ERROR else GRACE_SECONDS)
        time.sleep(POLL_SECONDS)
    return [replace(exit, error=read_error(_error_path(logs, exit.rank))) for exit in ended]


def _kill(processes: Sequence[subprocess.Popen]) -> None:
    """Kill every rank and its child processes."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(REAP_SECONDS)
