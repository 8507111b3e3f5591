"""Makes one storm: starts the run, kills what the schedule names, starts the run again, and records what is left."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from async_weather.options import RANK, AsyncStormOptions, Kill, plan_kills
from async_weather.reading import Reader
from async_weather.run import train, write_files
from weather.processes import STACK_SIGNAL, adopt_orphans, children_after, fork, segments, send
from weather.records import Log
from weather.surroundings import private_shared_memory

POLL_SECONDS = 0.01
END_SECONDS = 10.0
"""Time for helper processes to notice that their trainer is dead."""

TARGET_SECONDS = 5.0
"""Time that a kill waits for a process of its kind."""

STARTS = 12
"""Starts beyond one per kill: a run that cannot go on ends, and must not be started for ever."""


class AsyncSky:
    """One storm.

    Args:
        options: see there.
        folder: for records; must be empty.
    """

    def __init__(self, options: AsyncStormOptions, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._log = Log(folder / "sky.jsonl")
        self._kills = deque(plan_kills(options))
        self._due = 0.0
        self._trainer = 0
        self._reader = Reader(folder / "trainer.jsonl")
        self._lines: list[dict[str, Any]] = []

    def run(self) -> None:
        """Make the storm. Everything that there is to check is in the folder afterwards."""
        adopt_orphans()
        private = private_shared_memory()
        before = segments()
        write_files(self._folder, self._options)
        self._log.write("storm", options=self._options.as_data(), kills=[one.as_data() for one in self._kills])
        deadline = time.monotonic() + self._options.seconds
        starts, code = 0, None
        while code != 0 and starts < self._options.events + STARTS and time.monotonic() < deadline:
            starts += 1
            code = self._follow_run(starts, deadline)
            left = children_after(END_SECONDS)
            segments_left = sorted(segments() - before) if private else []
            self._log.write("ended", start=starts, code=code, processes=left, segments=segments_left)
        self._log.write("end", finished=code == 0, starts=starts, unused=len(self._kills))

    def _follow_run(self, number: int, deadline: float) -> int | None:
        """One start of the run: its exit code, or ``None`` if it hung."""
        self._trainer = fork(
            lambda: train(self._folder, self._options.ranks), self._folder / "logs" / f"run-{number}.log"
        )
        while time.monotonic() < deadline:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == self._trainer:
                return os.waitstatus_to_exitcode(status)
            self._kill_what_is_due()
            time.sleep(POLL_SECONDS)
        for pid in self._processes("collector", "server", RANK):
            send(pid, STACK_SIGNAL)
        send(self._trainer, STACK_SIGNAL)
        time.sleep(1.0)
        send(self._trainer, signal.SIGKILL)
        os.waitpid(self._trainer, 0)
        return None

    def _kill_what_is_due(self) -> None:
        if not self._kills:
            return
        kill, now = self._kills[0], time.monotonic()
        if not self._due:
            if kill.step >= 0 and self._n_consumed() < kill.step:
                return
            self._due = now + kill.delay
        if now < self._due:
            return
        targets = [self._trainer] if kill.kind == "trainer" else self._processes(kill.kind)
        needed = self._options.ranks if kill.kind == RANK else 1  # the choice is among all ranks
        if len(targets) < needed and now < self._due + TARGET_SECONDS:
            return
        self._strike(kill, targets)

    def _strike(self, kill: Kill, targets: Sequence[int]) -> None:
        self._kills.popleft()
        self._due = 0.0
        if targets:
            pid = targets[int(kill.choice * len(targets))]
            rank = next((line.get("rank") for line in self._lines if line.get("pid") == pid), None)
            self._log.write("killed", what=kill.kind, pid=pid, rank=rank, consumed=self._n_consumed())
            send(pid, signal.SIGKILL)
            if kill.kind in ("trainer", RANK):  # this start ends
                self._lines.clear()

    def _n_consumed(self) -> int:
        """Batches that this start of the run has consumed, those before its checkpoint included."""
        self._read_lines()
        return max((line["step"] + 1 for line in self._lines if line["kind"] == "step"), default=0)

    def _processes(self, *kinds: str) -> list[int]:
        """The running processes of some kinds that this start of the run has started."""
        self._read_lines()
        pids = [line["pid"] for line in self._lines if line["kind"] == "process" and line["what"] in kinds]
        return [pid for pid in pids if _runs(pid)]

    def _read_lines(self) -> None:
        for line in self._reader.fresh():
            if line["kind"] == "start":
                self._lines.clear()
            self._lines.append(line)


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    return False
