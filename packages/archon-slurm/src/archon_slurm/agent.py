"""The process of a job on each machine: ``python -m archon_slurm.agent JOB.json`` starts the machine's ranks.

It ends its ranks when a rank fails anywhere, when another machine falls silent, when the job gets a signal, and when a
later attempt of the job starts elsewhere. So no rank is left, even where SLURM has lost sight of a machine.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from archon_core.errors import USER_ERROR, ArchonError, ConfigError
from archon_core.ranks.addresses import free_port, own_address
from archon_core.ranks.environment import LAUNCHER_PID
from archon_core.ranks.error_file import ERROR_FILE
from archon_core.ranks.local_ranks import LocalRanks
from archon_slurm.attempt import Attempt, End, NodeStatus, TrainerJob, attempt_folder
from archon_slurm.silence import Silence

POLL_SECONDS = 0.1
BEAT_SECONDS = 1.0
"""Time between two reports of a machine, and between two looks at what others report."""

GRACE_SECONDS = 1.5
"""Time for ranks to write their errors after one has failed, before they are killed."""

MISTAKE_GRACE_SECONDS = 5.0
"""The same after a user's mistake, which the other ranks will raise, too."""

START_FACTOR = 5
"""A machine that has not reported at all counts as lost after so many times the limit: Python starts slowly there."""

LINGER_SECONDS = 30.0
"""Time that a machine waits for the reports of the others after a failure: SLURM kills them when it ends with one, and
the launcher would take them for lost. They notice the failure, give their ranks ``MISTAKE_GRACE_SECONDS``, and kill
them, which may take seconds."""


class Agent:
    """The ranks of one machine.

    Args:
        job: the trainer's job.
        node: number of this machine in the job.
        host: its name.
        attempt: folder of this attempt.
        previous: that of the attempt before it; ``None`` for the first one.
    """

    def __init__(self, job: TrainerJob, node: int, host: str, attempt: Attempt, previous: Attempt | None) -> None:
        self._job, self._node, self._host = job, node, host
        self._attempt, self._previous = attempt, previous
        self._ranks = LocalRanks()
        self._beat = 0
        self._told = ""
        self._signal: int | None = None
        self._silence = Silence(job.node_timeout)
        self._absence = Silence(START_FACTOR * job.node_timeout)

    def run(self) -> int:
        """Run the ranks to their end; returns the exit code."""
        try:
            self._attempt.folder.mkdir(parents=True, exist_ok=True)
            self._attempt.write_status(NodeStatus(self._node, self._host))
        except OSError as error:
            raise ConfigError(
                f"cluster.fileroot: {self._host} cannot write into {self._attempt.folder}: {error}; the run folder "
                "must be on a file system that all machines of the run share"
            ) from error
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)
        try:
            if self._previous is not None:
                self._wait_for_previous(self._previous)
            if (place := self._meet()) is not None:
                self._start(*place)
                self._watch()
        finally:
            self._ranks.kill()
            self._report(ended=True)
        code = self._exit_code()
        if code:
            self._linger()
        return code

    def _handle(self, number: int, frame: object) -> None:
        self._signal = number

    def _wait_for_previous(self, previous: Attempt) -> None:
        """Wait until no machine of the attempt before this one has running ranks, or can have any."""
        previous.write_end(End("superseded", reason="the job was started again"))
        silence = Silence(self._job.node_timeout)
        waiting = set(range(len(self._job.ranks_by_node)))
        while waiting and self._signal is None and self._attempt.end() is None:
            for node in list(waiting):
                status = previous.status(node)
                if status is None or status.ended or silence.of(node, status.beat):
                    waiting.remove(node)
            self._report()
            time.sleep(BEAT_SECONDS / 2)

    def _meet(self) -> tuple[str, int] | None:
        """Where the ranks meet; ``None`` if the attempt ends before all machines are there."""
        if self._node == 0:
            self._attempt.write_rendezvous(own_address(self._host), free_port())
        while self._signal is None and self._attempt.end() is None:
            place = self._attempt.rendezvous()
            if place is not None:
                return place
            self._report()
            self._look_for_silence()
            time.sleep(POLL_SECONDS)
        return None

    def _start(self, address: str, port: int) -> None:
        here = self._job.ranks_by_node[self._node]
        world = sum(map(len, self._job.ranks_by_node))
        for index, rank in enumerate(here):
            place = {
                "RANK": rank,
                "WORLD_SIZE": world,
                "LOCAL_RANK": index,
                "LOCAL_WORLD_SIZE": len(here),
                "MASTER_ADDR": address,
                "MASTER_PORT": port,
                LAUNCHER_PID: os.getpid(),
                ERROR_FILE: self._attempt.error(rank),
            }
            environment = {
                "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // len(here))),
                "PYTHONUNBUFFERED": "1",  # keep the last lines of a killed rank
                **_known(os.environ, "OMP_NUM_THREADS"),
                **self._job.environment,
                **{name: str(value) for name, value in place.items()},
            }
            self._ranks.start(rank, [sys.executable, *self._job.command], environment, self._attempt.log(rank))
        self._report()

    def _watch(self) -> None:
        """Wait until all ranks have ended, or must be killed."""
        deadline: float | None = None
        next_beat, forwarded = 0.0, False
        while self._ranks.running() and (deadline is None or time.monotonic() < deadline):
            if self._ranks.poll():
                self._report()
                failed = [rank for rank in self._ranks.ranks if _has_failed(rank.code)]
                if failed and deadline is None:
                    mistake = any(rank.code == USER_ERROR for rank in failed)
                    deadline = time.monotonic() + (MISTAKE_GRACE_SECONDS if mistake else GRACE_SECONDS)
                    text = f"rank {failed[0].rank} ended with code {failed[0].code}"
                    self._end(End("failure", self._node, reason=text))
            if self._signal is not None and not forwarded:
                self._end(End("stop", self._node, self._signal))
                self._ranks.send_signal(self._signal)
                forwarded = True
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + BEAT_SECONDS
                self._report()
                self._look_for_silence()
                end = self._attempt.end()
                if end is not None and end.kind == "stop" and not forwarded:
                    self._ranks.send_signal(end.signal)
                    forwarded = True
                elif end is not None and end.kind in ("kill", "superseded"):
                    return
                elif end is not None and end.kind in ("failure", "lost") and deadline is None:
                    deadline = time.monotonic() + MISTAKE_GRACE_SECONDS
            time.sleep(POLL_SECONDS)

    def _look_for_silence(self) -> None:
        """The first machine watches all others, and they watch the first one."""
        others = range(1, len(self._job.ranks_by_node)) if self._node == 0 else (0,)
        for node in others:
            status = self._attempt.status(node)
            if not self._is_silent(node, status):
                continue
            if status is None:
                reason = f"machine {node} has not reported at all"
            else:
                reason = f"{status.host} has not reported for {self._job.node_timeout:g} s"
            self._end(End("lost", node, reason=reason))

    def _linger(self) -> None:
        """Wait for the ends of the other machines: after a stop, one of them may still write a checkpoint."""
        failed = any(_has_failed(rank.code) for rank in self._ranks.ranks)
        deadline = time.monotonic() + LINGER_SECONDS if failed else math.inf
        others = [node for node in range(len(self._job.ranks_by_node)) if node != self._node]
        while others and time.monotonic() < deadline:
            others = [node for node in others if not self._has_ended(node)]
            time.sleep(POLL_SECONDS)

    def _has_ended(self, node: int) -> bool:
        """Whether a machine has reported its end, or does not report any more."""
        status = self._attempt.status(node)
        return (status is not None and status.ended) or self._is_silent(node, status)

    def _is_silent(self, node: int, status: NodeStatus | None) -> bool:
        """Whether a machine that has not ended has not reported for too long."""
        beat = None if status is None else status.beat
        absent, silent = self._absence.of(node, beat), self._silence.of(node, beat)
        return absent if status is None else silent and not status.ended

    def _exit_code(self) -> int:
        codes = [rank.code for rank in self._ranks.ranks if rank.code]
        if not codes:
            whole = len(self._ranks.ranks) == len(self._job.ranks_by_node[self._node])
            return 0 if whole else 128 + self._signal if self._signal is not None else 1
        own = [code for code in codes if code > 0]
        return own[0] if own else 1

    def _end(self, end: End) -> None:
        with self._tolerating_write_errors():
            self._attempt.write_end(end)

    def _report(self, *, ended: bool = False) -> None:
        self._beat += 1
        with self._tolerating_write_errors():
            self._attempt.write_status(NodeStatus(self._node, self._host, self._beat, ended, self._ranks.ranks))

    @contextlib.contextmanager
    def _tolerating_write_errors(self) -> Iterator[None]:
        """Go on if the shared file system is full or away: that is no reason to kill ranks. A machine that cannot
        report for longer counts as lost."""
        try:
            yield
        except OSError as error:
            if str(error) != self._told:
                self._told = str(error)
                print(f"{self._host}: cannot report, trying again: {error}", file=sys.stderr, flush=True)


def _has_failed(code: int | None) -> bool:
    return code is not None and code not in (0, 128 + signal.SIGINT, 128 + signal.SIGTERM)


def _known(environment: Mapping[str, str], name: str) -> dict[str, str]:
    return {name: environment[name]} if name in environment else {}


def main(path: str) -> int:
    """Run the agent of this machine in a SLURM job."""
    job = TrainerJob.read(Path(path))
    variables = {name: os.environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_NODEID", "SLURM_NNODES")}
    if not all(variables.values()):
        raise ConfigError(f"archon_slurm.agent: found {variables}; it runs once per machine of a job, by srun")
    if int(variables["SLURM_NNODES"]) != len(job.ranks_by_node):
        raise ConfigError(
            f"archon_slurm.agent: found {variables['SLURM_NNODES']} machines; the job needs {len(job.ranks_by_node)}"
        )
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    logs, id = Path(job.logs), variables["SLURM_JOB_ID"]
    attempt = Attempt(attempt_folder(logs, id, restarts))
    previous = Attempt(attempt_folder(logs, id, restarts - 1)) if restarts else None
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    if restarts and "--resume" not in job.command:
        job = TrainerJob(**{**job.__dict__, "command": [*job.command, "--resume"]})
    return Agent(job, int(variables["SLURM_NODEID"]), host, attempt, previous).run()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except ArchonError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
