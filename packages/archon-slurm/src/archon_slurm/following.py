"""Follows the trainer's job to the end of an attempt: shows its output, asks SLURM, and looks for lost machines."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from archon_core.contracts.launching import StopRequest
from archon_core.ranks.first_failure import RankExit
from archon_slurm import client
from archon_slurm.attempt import Attempt, End, attempt_folder
from archon_slurm.client import SlurmError
from archon_slurm.output import FollowedFile
from archon_slurm.silence import Silence
from archon_slurm.states import JobState

STEP_SECONDS = 0.2
"""Time between two looks at the run folder."""

DIED = ("FAILED", "NODE_FAIL", "BOOT_FAIL")
"""States of a job that may have lost a machine. In others, someone or a limit ended it."""

REPORT_SECONDS = 10.0
"""Time for machines to report the ends of their ranks after an attempt has failed, or its job has ended."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        exits: the ranks that ended by themselves, or were lost.
        kind: ``ended`` with its job; ``lost`` with a machine, while SLURM believes that the job runs; ``preempted``,
            and SLURM does not start the job again; ``killed`` by the user.
        hosts: the lost machines.
    """

    exits: Sequence[RankExit]
    kind: Literal["ended", "lost", "preempted", "killed"] = "ended"
    hosts: Sequence[str] = ()


class Follower:
    """Follows one job.

    Args:
        job: its id.
        ranks_by_node: the ranks on each of its machines.
        logs: parent of its attempts' folders.
        stop: the user's request to stop.
        note: prints a line for the user.
        poll_seconds: time between two questions to SLURM.
        node_timeout: seconds after which a machine that does not report counts as lost.
        attempt: number of the attempt to follow; SLURM may still show the one before.
        look: called with every question to SLURM.
    """

    def __init__(
        self,
        job: str,
        ranks_by_node: Sequence[Sequence[int]],
        logs: Path,
        *,
        stop: StopRequest,
        note: Callable[[str], None],
        poll_seconds: float,
        node_timeout: float,
        attempt: int = 0,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self._job, self._ranks, self._logs = job, ranks_by_node, logs
        self._stop, self._note = stop, note
        self._poll_seconds, self._node_timeout = poll_seconds, node_timeout
        self._first, self._look = attempt, look
        self._told = ""

    def follow(self) -> Outcome:
        """Wait for the end of the job, of an attempt of it by failure, or of the user's patience."""
        state = self._ask(None)
        attempt, output, silence = self._watch(state)
        forwarded, next_question, failed_since = False, 0.0, 0.0
        while not state.has_ended:
            if self._stop.insisted or (self._stop.number is not None and state.waits):
                attempt.write_end(End("kill"))
                return Outcome((), "killed")
            if self._stop.number is not None and not forwarded:
                attempt.write_end(End("stop", signal=self._stop.number))
                forwarded = True
            output.show()
            if time.monotonic() >= next_question:
                next_question = time.monotonic() + self._poll_seconds
                before, state = state, self._ask(state)
                self._look()
                if state.restarts != before.restarts:
                    self._note(f"job {self._job} was started again; it resumes from the last checkpoint")
                    attempt, output, silence = self._watch(state)
                    forwarded, failed_since = False, 0.0
            if state.restarts < self._first:
                time.sleep(STEP_SECONDS)
                continue
            gone = self._silent_nodes(attempt, silence)
            if state.state == "RUNNING" and gone:
                names = [self._host(attempt, node, state) for node in gone]
                reason = f"{', '.join(names)} has not reported for {self._node_timeout:g} s"
                attempt.write_end(End("lost", gone[0], reason=reason))
            end = attempt.end()
            if end is not None and end.kind in ("failure", "lost"):
                failed_since = failed_since or time.monotonic()
                # A machine that still reports is not lost: ranks with much memory take their time to end.
                late = time.monotonic() - failed_since > REPORT_SECONDS and self._unreported(attempt).keys() <= {*gone}
                if late or (end.kind == "lost" and self._all_reported(attempt, except_for=end.node)):
                    return self._failed(attempt, state)
            time.sleep(STEP_SECONDS)
        self._wait_for_reports(attempt)
        output.show()
        silent = self._unreported(attempt) if state.state in DIED else {}
        causes = {**dict.fromkeys(range(len(self._ranks)), str(state)), **silent}
        hosts = [self._host(attempt, node, state) for node in silent]
        kind: Literal["lost", "preempted", "ended"] = "preempted" if state.state == "PREEMPTED" else "ended"
        return Outcome(self._exits(attempt, state, causes), "lost" if silent else kind, hosts)

    def _failed(self, attempt: Attempt, state: JobState) -> Outcome:
        """The outcome of an attempt that is over while SLURM believes that the job runs."""
        lost = self._unreported(attempt)
        hosts = [self._host(attempt, node, state) for node in lost]
        return Outcome(self._exits(attempt, state, lost), "lost" if lost else "ended", hosts)

    def _unreported(self, attempt: Attempt) -> dict[int, str]:
        """Machines that took part and did not report their end -> what to say about them."""
        statuses = {node: attempt.status(node) for node in range(len(self._ranks))}
        return {
            node: f"{status.host} does not report any more"
            for node, status in statuses.items()
            if status is not None and not status.ended
        }

    def _watch(self, state: JobState) -> tuple[Attempt, FollowedFile, Silence]:
        attempt = Attempt(attempt_folder(self._logs, self._job, state.restarts))
        return attempt, FollowedFile(attempt.log(0)), Silence(self._node_timeout)

    def _ask(self, last: JobState | None) -> JobState:
        """The job's state; the last known one while SLURM does not answer."""
        try:
            state = client.job_state(self._job)
        except SlurmError as error:
            if last is None:
                raise
            self._tell(f"{error}; the job goes on without it, and SLURM is asked again")
            return last
        self._tell(str(state))
        return state

    def _tell(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self._note(text)

    def _silent_nodes(self, attempt: Attempt, silence: Silence) -> list[int]:
        """Machines that have stopped to report. Those that never did may still be starting."""
        statuses = {node: attempt.status(node) for node in range(len(self._ranks))}
        return [
            node
            for node, status in statuses.items()
            if status is not None and not status.ended and silence.of(node, status.beat)
        ]

    def _all_reported(self, attempt: Attempt, *, except_for: int = -1) -> bool:
        nodes = [node for node in range(len(self._ranks)) if node != except_for]
        return all((status := attempt.status(node)) is not None and status.ended for node in nodes)

    def _wait_for_reports(self, attempt: Attempt) -> None:
        """A shared file system may show the last reports a little later."""
        deadline = time.monotonic() + REPORT_SECONDS
        while attempt.folder.is_dir() and not self._all_reported(attempt) and time.monotonic() < deadline:
            time.sleep(STEP_SECONDS)

    def _exits(self, attempt: Attempt, state: JobState, lost: dict[int, str]) -> list[RankExit]:
        output = Path(state.output) if state.output else None
        return attempt.exits(len(self._ranks), self._ranks, lost=lost, script_output=output)

    @staticmethod
    def _host(attempt: Attempt, node: int, state: JobState) -> str:
        status = attempt.status(node)
        if status is not None:
            return status.host
        return state.hosts[node] if node < len(state.hosts) else f"machine {node}"
