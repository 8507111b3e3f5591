"""Runs storms one after the other, each in a forked process, checks their records and prints one line per storm."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from async_weather.checker import check
from async_weather.options import AsyncStormOptions
from async_weather.sky import AsyncSky
from weather.options import StormOptions
from weather.processes import fork
from weather.task import build_trainer


def run_storms(storms: Sequence[AsyncStormOptions], folder: Path) -> list[bool]:
    """Run the storms; returns which passed."""
    build_trainer(StormOptions(), layout="archon:d1")  # loads everything that is loaded late, before the first fork
    undisturbed = None
    if storms[0].staleness == 0:
        undisturbed = folder / "undisturbed"
        _make(replace(storms[0], events=0), undisturbed)
    return [_run(options, folder / f"seed-{options.seed}", undisturbed) for options in storms]


def _make(options: AsyncStormOptions, folder: Path) -> None:
    """Make one storm in a process, which adopts whatever the run leaves behind."""
    folder.mkdir(parents=True)
    pid = fork(lambda: AsyncSky(options, folder).run(), folder / "logs" / "sky.log")
    os.waitpid(pid, 0)


def _run(options: AsyncStormOptions, folder: Path, undisturbed: Path | None) -> bool:
    start = time.monotonic()
    _make(options, folder)
    stormed = time.monotonic()
    report = check(folder, undisturbed)
    seconds = f"{stormed - start:.1f} s, and {time.monotonic() - stormed:.1f} s of checks"
    print(f"seed {options.seed}: {report.summary()} ({seconds})", flush=True)
    for problem in report.problems:
        print(f"seed {options.seed}: {problem}", flush=True)
    return not report.problems
