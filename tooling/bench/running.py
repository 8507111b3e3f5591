"""Runs benchmarks, each in a separate process with its own time limit."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benches import Bench
from limited import run_limited
from machine import describe
from records import Result, read_results

FOLDER = Path(__file__).resolve().parent


def run_benches(benches: Sequence[Bench], *, quick: bool) -> Iterator[Result]:
    """The result of each benchmark as it ends; a crash or a time limit keeps what was measured before."""
    with tempfile.TemporaryDirectory(prefix="archon-bench-") as work:
        for bench in benches:
            yield run_bench(bench, Path(work), quick=quick)


def run_bench(bench: Bench, work: Path, *, quick: bool, folder: Path = FOLDER) -> Result:
    """Run one benchmark."""
    script, file = folder / f"{bench.name}.py", work / f"{bench.name}.json"
    if not script.is_file():
        return Result(bench.name, "skipped", machine=describe(), message=f"this checkout has no {script.name}")
    command = [sys.executable, str(script), "--json", str(file), *bench.arguments, *(bench.quick if quick else ())]
    started = time.monotonic()
    ending = run_limited(command, work / f"{bench.name}.log", bench.limit)
    seconds = time.monotonic() - started
    results = read_results(file) if file.is_file() else []
    result = results[0] if results else Result(bench.name, "error", machine=describe())
    # A missed bar is exit status 1 too, and the benchmark has said so itself.
    if ending.status == "timeout" or (ending.status == "error" and result.status != "fail"):
        return replace(result, status=ending.status, message=ending.reason, seconds=seconds)
    return replace(result, seconds=seconds)
