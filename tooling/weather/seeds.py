"""Runs storms, each in a forked process, checks their records and prints one line per storm."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from weather.checker import check
from weather.options import StormOptions
from weather.processes import die_with_parent
from weather.records import Records
from weather.sky import Sky
from weather.task import build_trainer


def run_seeds(storms: Sequence[StormOptions], folder: Path, *, jobs: int) -> list[bool]:
    """Run the storms; returns which passed."""
    build_trainer(storms[0], layout="archon:d1")  # loads everything that is loaded late, before the first fork
    results: dict[int, bool] = {}
    running: dict[int, int] = {}
    waiting = list(range(len(storms)))
    while waiting or running:
        while waiting and len(running) < jobs:
            number = waiting.pop(0)
            running[_fork(storms[number], folder / f"seed-{storms[number].seed}")] = number
        pid, status = os.waitpid(-1, 0)
        results[running.pop(pid)] = os.waitstatus_to_exitcode(status) == 0
    return [results[number] for number in sorted(results)]


def _fork(options: StormOptions, folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        die_with_parent()
        with contextlib.suppress(KeyboardInterrupt):
            code = 0 if run_storm(options, folder) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_storm(options: StormOptions, folder: Path) -> bool:
    """One storm and its checks; prints what they found."""
    folder.mkdir(parents=True)
    start = time.monotonic()
    Sky(options, folder).run()
    stormed = time.monotonic()
    report = check(Records.read(folder))
    seconds = f"{stormed - start:.1f} s, and {time.monotonic() - stormed:.1f} s of checks"
    print(f"seed {options.seed}: {report.summary()} ({seconds})", flush=True)
    for problem in report.problems:
        print(f"seed {options.seed}: {problem}", flush=True)
    return not report.problems
