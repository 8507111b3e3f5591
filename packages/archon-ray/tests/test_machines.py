"""The actor of a machine: starts processes, reports and ends them."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from archon_core.errors import ConfigError
from archon_ray.machine import Program, Report

SHOW = """
import json, os, signal, sys
names = ("RANK", "OMP_NUM_THREADS", "RAY_ADDRESS", "ARCHON_NODE_ADDRESS", "ARCHON_LAUNCHER_PID")
print(json.dumps([os.environ.get(name) for name in names] + [os.getcwd()]))
print(json.dumps([int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())]), file=sys.stderr)
sys.exit(int(os.environ["RANK"]))
"""

WAIT = "import signal, sys, time; signal.signal(2, lambda *_: sys.exit(130)); print('up', flush=True); time.sleep(60)"
"""Waits for SIGINT."""


def program(tmp_path: Path, rank: int, code: str, **environment: str) -> Program:
    return Program(
        rank,
        ["-S", "-c", code],
        {"RANK": str(rank), **environment},
        str(tmp_path / f"{rank}.log"),
        str(tmp_path),
        str(tmp_path / f"{rank}.error.json"),
    )


def until_ended(machine: Any) -> tuple[Report, dict[int, bytes]]:
    deadline, output, positions = time.monotonic() + 30, {}, {}
    while True:
        report: Report = machine.report(positions)
        for rank, data in report.output.items():
            output[rank] = output.get(rank, b"") + data
            positions[rank] = len(output[rank])
        if report.ended:
            return report, output
        assert time.monotonic() < deadline, report
        time.sleep(0.02)


def test_processes_get_their_environment_and_are_reported(near: Any, tmp_path: Path) -> None:
    machine = near().machine
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as Ray does in its processes
    try:
        machine.start([program(tmp_path, 0, SHOW), program(tmp_path, 3, SHOW, OMP_NUM_THREADS="7")])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    report, output = until_ended(machine)
    assert [(rank.rank, rank.code) for rank in report.ranks] == [(0, 0), (3, 3)]
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    for rank, cores in ((0, threads), (3, "7")):
        shown, blocked = map(json.loads, output[rank].splitlines())
        assert shown == [str(rank), cores, "127.0.0.1:6379", "127.0.0.1", str(os.getpid()), str(tmp_path)]
        assert blocked == [], "a rank that blocks SIGINT would not stop"


def test_a_signal_reaches_every_process(near: Any, tmp_path: Path) -> None:
    machine = near().machine
    machine.start([program(tmp_path, rank, WAIT) for rank in (0, 1)])
    while len(machine.report({}).output) < 2:
        time.sleep(0.02)
    machine.send_signal(signal.SIGINT)
    report, _ = until_ended(machine)
    assert [rank.code for rank in report.ranks] == [130, 130]


def test_killed_processes_are_marked(near: Any, tmp_path: Path) -> None:
    machine = near().machine
    machine.start([program(tmp_path, 0, "import time; time.sleep(60)")])
    machine.kill()
    report, _ = until_ended(machine)
    assert [(rank.code, rank.killed) for rank in report.ranks] == [(-signal.SIGKILL, True)]


def test_a_machine_says_what_it_lacks(near: Any, tmp_path: Path) -> None:
    machine = near("b").machine
    place = machine.describe([str(tmp_path), str(tmp_path / "missing")])
    assert (place.node, place.address) == ("id-b", "127.0.0.1")
    assert place.missing == [str(tmp_path / "missing")]
    assert place.versions["archon-core"]
    assert 0 < machine.free_port() < 2**16


def test_a_process_that_cannot_start_is_named(near: Any, tmp_path: Path) -> None:
    one = program(tmp_path, 2, "")
    with pytest.raises(ConfigError, match=r"cannot start rank 2: .*missing"):
        near().machine.start([Program(2, one.arguments, {}, one.log, str(tmp_path / "missing"))])
