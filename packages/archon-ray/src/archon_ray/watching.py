"""Watches the ranks of one attempt on all machines until they have ended, or must be killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from archon_core.contracts.launching import StopRequest
from archon_core.errors import USER_ERROR
from archon_core.ranks.error_file import read_error
from archon_core.ranks.first_failure import RankExit
from archon_ray.machine import Place, Report
from archon_ray.output import RankOutput
from archon_ray.remote import Answer, LostError, RemoteMachine

STEP_SECONDS = 0.1
"""Time between two looks at the machines."""

GRACE_SECONDS = 1.5
"""Time for ranks to write their errors after one has failed, before they are killed."""

MISTAKE_GRACE_SECONDS = 5.0
"""The same after a user's mistake, which the other ranks will raise, too, and after the loss of a machine."""

KILL_SECONDS = 20.0
"""Time for machines to kill their ranks and to report it."""


class WatchedMachine:
    """One machine, and what is known about its ranks. A machine has one question at a time.

    Args:
        machine: its actor.
        place: its description.
        ranks: the ranks that run there.
        timeout: seconds after which a machine that does not answer is lost.
    """

    def __init__(self, machine: RemoteMachine, place: Place, ranks: Sequence[int], timeout: float) -> None:
        self.machine, self.place, self.ranks = machine, place, ranks
        self.report = Report()
        self.lost = ""
        self._timeout = timeout
        self._positions: dict[int, int] = {}
        self._answer: Answer | None = None
        self._asked = 0.0

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be reported."""
        return bool(self.lost) or self.report.ended

    def look(self, output: RankOutput) -> None:
        """Take the machine's answer, if there is one, and ask again."""
        if self.is_over:
            return
        if self._answer is None:
            self._answer, self._asked = self.machine.ask("report", dict(self._positions)), time.monotonic()
        if not self._answer.ready():
            if time.monotonic() - self._asked > self._timeout:
                self.lost = f"{self.place.host} has not answered for {self._timeout:g} s"
            return
        try:
            self.report = self._answer.result()
        except LostError as error:
            self.lost = f"{self.place.host} is lost: {error}"
            return
        finally:
            self._answer = None
        output.add(self.report.output)
        for rank, data in self.report.output.items():
            self._positions[rank] = self._positions.get(rank, 0) + len(data)

    def exits(self, logs: Path) -> list[RankExit]:
        """How its ranks ended, without the ranks that were killed because of another one."""
        known = {rank.rank: rank for rank in self.report.ranks}
        exits = []
        for number in self.ranks:
            rank, log = known.get(number), log_path(logs, number)
            if rank is not None and rank.code is not None and not rank.killed:
                error = self.report.errors.get(number)
                exits.append(RankExit(number, rank.pid, rank.code, rank.time, error, log, self.place.host))
            elif self.lost and (rank is None or rank.code is None):
                pid, error = rank.pid if rank is not None else 0, read_error(error_path(logs, number))
                exits.append(RankExit(number, pid, 1, float("inf"), error, log, self.place.host, self.lost))
        return exits


class Watch:
    """Watches all machines.

    Args:
        machines: the machines, whose ranks have been started.
        logs: folder of the attempt.
        stop: the user's request to stop.
        look: called again and again, to look at something else.
    """

    def __init__(
        self, machines: Sequence[WatchedMachine], logs: Path, *, stop: StopRequest, look: Callable[[], None]
    ) -> None:
        self._machines, self._logs, self._stop, self._look = machines, logs, stop, look
        self._output = RankOutput()

    def run(self) -> list[RankExit]:
        """Wait for the end; no rank runs afterwards on machines that answer. Returns how ranks ended by themselves."""
        deadline: float | None = None
        forwarded = False
        while not self._all_over() and not self._stop.insisted and (deadline is None or time.monotonic() < deadline):
            if self._stop.number is not None and not forwarded:
                for machine in self._machines:
                    machine.machine.ask("send_signal", self._stop.number)
                forwarded = True
            for machine in self._machines:
                machine.look(self._output)
            if deadline is None and (grace := self._grace()):
                deadline = time.monotonic() + grace
            self._look()
            time.sleep(STEP_SECONDS)
        self._kill()
        self._output.finish()
        return [exit for machine in self._machines for exit in machine.exits(self._logs)]

    def _all_over(self) -> bool:
        return all(machine.is_over for machine in self._machines)

    def _grace(self) -> float:
        """Seconds until all ranks must have ended; 0 as long as none has failed."""
        failed = [exit for machine in self._machines for exit in machine.exits(self._logs) if exit.failed]
        if not failed:
            return 0.0
        slow = any(exit.code == USER_ERROR or exit.cause for exit in failed)
        return MISTAKE_GRACE_SECONDS if slow else GRACE_SECONDS

    def _kill(self) -> None:
        """Kill what still runs, and take the last output."""
        for machine in self._machines:
            if not machine.lost:
                machine.machine.ask("kill")
        deadline = time.monotonic() + KILL_SECONDS
        while not self._all_over() and time.monotonic() < deadline:
            for machine in self._machines:
                machine.look(self._output)
            time.sleep(STEP_SECONDS)


def log_path(logs: Path, rank: int) -> Path:
    """The output of a rank."""
    return logs / f"rank-{rank}.log"


def error_path(logs: Path, rank: int) -> Path:
    """The error of a rank, which it writes itself."""
    return logs / f"rank-{rank}.error.json"
