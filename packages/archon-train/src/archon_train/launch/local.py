"""The local launcher: starts and watches the ranks of a run on this machine.

It starts processes with ``torch.distributed.elastic.multiprocessing`` but watches them itself: elastic's watcher gives
other ranks 30 seconds to end when one dies, and does not distinguish a requested stop from a failure.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch.distributed.elastic.multiprocessing import (
    LogsDest,
    LogsSpecs,
    SignalException,
    SubprocessContext,
    start_processes,
)

from archon_core.errors import USER_ERROR
from archon_core.ranks.environment import LAUNCHER_PID
from archon_core.ranks.error_file import ERROR_FILE, read_error
from archon_core.ranks.first_failure import RankExit
from archon_core.ranks.loopback_store import LOCALHOST, serve_loopback_store
from archon_train.launch.world import threads_per_rank
from archon_train.run.interrupt import StopSignal

POLL_SECONDS = 0.05

GRACE_SECONDS = 1.5
"""Time for the other ranks to write their errors after one has died, before they are killed."""

MISTAKE_GRACE_SECONDS = 5
"""The same after a user error, which the other ranks will raise, too, but perhaps after slow imports."""

REAP_SECONDS = 10
"""Time to wait for a killed process. A process that hangs in a device driver cannot be reaped."""

_ELASTIC_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


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
    store = serve_loopback_store()
    try:
        context = _start(arguments, n_ranks, logs, store.port, variables or [{}] * n_ranks)
    except SignalException as interruption:
        stop.request(interruption.sigval)
        return []
    try:
        return _watch(context, logs, stop)
    finally:
        _kill(context)
        del store  # last: running ranks would treat its end as a failure


class _RankLogs(LogsSpecs):
    """Paths of each rank's output and error file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(log_dir=str(folder))
        self._folder = folder

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Elastic's hook: file names; an empty name stands for the terminal."""
        errors = {rank: str(_error_path(self._folder, rank)) for rank in envs}
        for rank, environment in envs.items():
            environment[ERROR_FILE] = errors[rank]
        # Elastic would overwrite a file that both streams name, so the rank merges its streams itself.
        return LogsDest(
            stdouts={rank: os.devnull if rank else "" for rank in envs},
            stderrs={rank: str(_log_path(self._folder, rank)) if rank else "" for rank in envs},
            error_files=errors,
        )

    @property
    def root_log_dir(self) -> str:
        """The folder."""
        return str(self._folder)


def _log_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.log"


def _error_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.error.json"


def _start(
    arguments: Sequence[str], n_ranks: int, logs: Path, port: int, variables: Sequence[Mapping[str, str]]
) -> SubprocessContext:
    # Without -P, `python -m` would put the working directory first on sys.path, which `archon` does not.
    isolated = () if sys.path[0] in ("", os.getcwd()) else ("-P",)
    command = (*isolated, "-m", "archon_core.cli", *arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    with _handlers_kept():
        context = start_processes(
            name="archon",
            entrypoint=sys.executable,
            args=dict.fromkeys(range(n_ranks), command),
            envs={rank: _rank_environment(rank, n_ranks, port, more) for rank, more in enumerate(variables)},
            logs_specs=_RankLogs(logs),
        )
    assert isinstance(context, SubprocessContext)
    return context


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Restore signal handlers: elastic installs its own and leaves them."""
    handlers = {number: signal.getsignal(number) for number in _ELASTIC_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _rank_environment(rank: int, n_ranks: int, port: int, more: Mapping[str, str]) -> dict[str, str]:
    place = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(n_ranks),
        "LOCAL_WORLD_SIZE": str(n_ranks),
        "MASTER_ADDR": LOCALHOST,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # all ranks are clients of the launcher's store
        LAUNCHER_PID: str(os.getpid()),
    }
    defaults = {
        "OMP_NUM_THREADS": str(threads_per_rank(n_ranks)),
        "PYTHONUNBUFFERED": "1",  # keep the last lines of a killed rank
    }
    return {name: os.environ.get(name, value) for name, value in defaults.items()} | {**more, **place}


def _watch(context: SubprocessContext, logs: Path, stop: StopSignal) -> list[RankExit]:
    """Wait until all ranks have ended, or must be killed."""
    running = {rank: handler.proc for rank, handler in context.subprocess_handlers.items()}
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


def _kill(context: SubprocessContext) -> None:
    """Kill every rank and its child processes."""
    processes = [handler.proc for handler in context.subprocess_handlers.values()]
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # each rank leads a process group
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(REAP_SECONDS)
    if all(process.poll() is not None for process in processes):  # torch 2.11 would wait for the others forever
        context.close()
