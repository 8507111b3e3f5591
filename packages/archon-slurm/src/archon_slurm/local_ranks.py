"""The ranks of one machine as child processes. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from archon_slurm.attempt import RankStatus

REAP_SECONDS = 10.0
"""Time to wait for a killed process. One that hangs in a device driver cannot be reaped."""


class LocalRanks:
    """Starts ranks, watches them, and kills them with every process that they started."""

    def __init__(self) -> None:
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._ranks: dict[int, RankStatus] = {}

    @property
    def ranks(self) -> list[RankStatus]:
        """What is known about each rank."""
        return [self._ranks[rank] for rank in sorted(self._ranks)]

    def start(self, rank: int, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start a rank; both of its streams go to ``log``."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
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
