"""Ranks on several machines, watched to their end."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from archon_core.ranks.first_failure import explain, first_to_fail
from archon_ray import watching
from archon_ray.machine import Program
from archon_ray.watching import Watch, WatchedMachine, error_path, log_path

WAIT = "import signal, sys, time; signal.signal(2, lambda *_: sys.exit(130)); print('up', flush=True); time.sleep(60)"


@dataclass
class Stop:
    number: int | None = None
    insisted: bool = False


@dataclass
class Run:
    """One rank on each machine."""

    logs: Path
    near: Any
    stop: Stop

    def machine(self, rank: int, code: str, timeout: float = 20.0) -> WatchedMachine:
        one = self.near(str(rank))
        paths = str(log_path(self.logs, rank)), str(self.logs), str(error_path(self.logs, rank))
        one.machine.start([Program(rank, ["-S", "-c", code], {}, *paths)])
        return WatchedMachine(one, one.machine.describe([]), [rank], timeout)

    def watch(self, *machines: WatchedMachine, look: Any = lambda: None) -> Any:
        return Watch(machines, self.logs, stop=self.stop, look=look).run()


@pytest.fixture
def run(tmp_path: Path, near: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(watching, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(watching, "MISTAKE_GRACE_SECONDS", 0.1)
    return Run(tmp_path, near, Stop())


def test_all_ranks_end_and_all_output_is_shown(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    exits = run.watch(run.machine(0, "print('a'); print('b', end='')"), run.machine(1, "print('c')"))
    assert [(exit.rank, exit.code) for exit in exits] == [(0, 0), (1, 0)]
    assert sorted(capsys.readouterr().out.splitlines()) == ["a", "b", "rank 1: c"]


def test_after_a_failure_the_others_are_killed_and_do_not_count(run: Run) -> None:
    exits = run.watch(run.machine(0, WAIT), run.machine(1, "import sys; sys.exit(7)"))
    (failed,) = exits
    assert (failed.rank, failed.code, failed.log) == (1, 7, log_path(run.logs, 1))
    assert "failed first, with exit code 7" in explain(failed, 2)


def test_the_ranks_of_a_lost_machine_are_lost_and_the_others_are_killed(run: Run) -> None:
    first, second = run.machine(0, WAIT), run.machine(1, WAIT)
    second.machine.fault = "lost"
    exits = run.watch(first, second)
    assert [exit.rank for exit in exits] == [1]
    assert f"{second.place.host} is lost: the actor died" in explain(first_to_fail(exits), 2)
    assert first.report.ranks[0].killed


def test_a_machine_that_does_not_answer_is_lost(run: Run) -> None:
    first, second = run.machine(0, WAIT), run.machine(1, WAIT, timeout=0.3)
    second.machine.fault = "silent"
    assert second.lost == ""
    assert [exit.rank for exit in run.watch(first, second)] == [1]
    assert "has not answered for 0.3 s" in second.lost


def test_the_first_signal_stops_the_ranks(run: Run) -> None:
    machines = run.machine(0, WAIT), run.machine(1, WAIT)

    def look() -> None:
        if all(log_path(run.logs, rank).read_text() for rank in (0, 1)):
            run.stop.number = signal.SIGINT

    assert [exit.code for exit in run.watch(*machines, look=look)] == [130, 130]


def test_the_second_signal_kills_them(run: Run) -> None:
    start = time.monotonic()
    run.stop.number, run.stop.insisted = signal.SIGINT, True
    assert run.watch(run.machine(0, "import signal, time; signal.signal(2, 1); time.sleep(60)")) == []
    assert time.monotonic() - start < 60, "it was not waited for"
