"""The ranks of one machine as child processes, for launchers that run on every machine. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

REAP_SECONDS = 10.0
"""Time to wait for a killed process. One that hangs in a device driver cannot be reaped."""


@dataclass(frozen=True)
class RankStatus:
    """One rank on a machine.

    Attributes:
        rank: the rank.
        pid: its process.
        code: exit code, the negative number of a signal; ``None`` while it runs.
        time: of its end, by the machine's clock.
        killed: whether its machine ended it, after something else had failed.
    """

    rank: int
    pid: int
    code: int | None = None
    time: float = 0.0
    killed: bool = False


class LocalRanks:
    """Starts ranks, watches them, and kills them with every process that they started."""

    def __init__(self) -> None:
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._ranks: dict[int, RankStatus] = {}

    @property
    def ranks(self) -> list[RankStatus]:
        """What is known about each rank."""
        return [self._ranks[rank] for rank in sorted(self._ranks)]

    def start(
        self,
        rank: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        folder: str | None = None,
    ) -> None:
        """Start a rank; both of its streams go to ``log``.

        Args:
            rank: the rank.
            command: program and arguments.
            environment: variables to add to this process's.
            log: file to append to.
            folder: working directory; ``None`` for this process's.
        """
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes[rank] = process
        self._ranks[rank] = RankStatus(rank, process.pid)

    def poll(self) -> bool:
        """Look which ranks have ended; returns whether one has since the last look."""
        before = list(self._ranks.values())
        for rank, process in self._processes.items():
            if self._ranks[rank].code is None and (code := process.poll()) is not None:
                self._ranks[rank] = replace(self._ranks[rank], code=code, time=time.time())
        return before != list(self._ranks.values())

    def running(self) -> list[int]:
        """The ranks that have not ended."""
        return [status.rank for status in self.ranks if status.code is None]

    def send_signal(self, number: int) -> None:
        """Send a signal to every running rank."""
        for rank in self.running():
            with contextlib.suppress(ProcessLookupError):
                self._processes[rank].send_signal(number)

    def kill(self) -> None:
        """Kill every rank and its child processes. Ranks that still ran are marked as killed."""
        self.poll()
        for rank in self.running():
            self._ranks[rank] = replace(self._ranks[rank], killed=True)
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # each rank leads a session
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(REAP_SECONDS)
        self.poll()
