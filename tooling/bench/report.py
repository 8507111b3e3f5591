"""What every benchmark does with its measurements: print them, write them to a file as they come, and judge them."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from machine import describe
from records import Measurement, Result, to_json


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--json FILE``."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")


class Report:
    """Collects the measurements of one benchmark.

    The file is rewritten after each of them, so that a crash or a time limit loses only what is not yet measured.

    Args:
        bench: module name of the benchmark.
        file: for JSON, or ``None``.
    """

    def __init__(self, bench: str, file: Path | None) -> None:
        self._file = file
        self._started = time.monotonic()
        self._problems: list[str] = []
        self._result = Result(bench, "error", machine=describe(), message="ended before its last measurement")
        self._write()

    def add(self, measurement: Measurement) -> None:
        """Keep and print a measurement."""
        print(measurement.describe(), flush=True)
        self._update(measurements=(*self._result.measurements, measurement))

    def fail(self, problem: str) -> None:
        """Fail for another reason than a missed bar, such as results that differ."""
        self._problems.append(problem)

    def skip(self, reason: str) -> int:
        """End without measurements, on a machine that lacks what the benchmark needs; returns the exit status."""
        print(f"skipped: {reason}")
        self._update(status="skipped", message=reason)
        return 0

    def finish(self) -> int:
        """Judge all measurements; returns the exit status: 1 if a bar is missed."""
        self._update(message="")
        self._result = self._result.judged(self._problems)
        self._write()
        if self._result.message:
            print(self._result.message)
        return int(self._result.status != "pass")

    def _update(self, **changes: object) -> None:
        self._result = Result(**{**vars(self._result), **changes, "seconds": time.monotonic() - self._started})
        self._write()

    def _write(self) -> None:
        if self._file is not None:
            self._file.write_text(to_json([self._result]), encoding="utf-8")
