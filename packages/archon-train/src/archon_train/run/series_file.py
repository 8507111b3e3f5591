"""A file with one line per optimizer step that keeps a bounded number of steps, evenly spread over the run."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from archon_engine.checkpoint.publication import publish_text

MOST_LINES = 256
"""Most lines of a file. A full one drops every other line, and from then on takes half as many."""


@dataclass
class SeriesFile:
    """Lines of steps 1, 1 + stride, 1 + 2 stride, ...; the stride is a power of two.

    Attributes:
        path: the file. Each of its lines is a JSON object with ``step``.
        most: lines that it may have.
    """

    path: Path
    most: int = MOST_LINES
    _lines: dict[int, str] | None = field(default=None, init=False)
    _stride: int = field(default=1, init=False)

    def add(self, step: int, line: str) -> None:
        """Write the line of ``step``, from 1, if the step is among the kept ones.

        Drops lines of ``step`` and later steps, which a run before a resumption, or a supervised start, had reached.
        """
        if self._lines is None or step <= max(self._lines, default=0):
            self._reopen(step)
        assert self._lines is not None
        if (step - 1) % self._stride:
            return
        self._lines[step] = line
        if len(self._lines) <= self.most:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            return
        while len(self._lines) > self.most:
            self._stride *= 2
            self._lines = {number: kept for number, kept in self._lines.items() if (number - 1) % self._stride == 0}
        self._rewrite()

    def _reopen(self, step: int) -> None:
        self._lines, self._stride = {}, 1
        if not self.path.is_file():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                number = json.loads(line)["step"]
            except (ValueError, TypeError, KeyError):  # a half-written line of a killed process
                continue
            if number < step:
                self._lines[number] = line
        self._stride = max(1, math.gcd(*(number - 1 for number in self._lines)))
        self._rewrite()

    def _rewrite(self) -> None:
        publish_text(self.path, "".join(f"{line}\n" for line in (self._lines or {}).values()))
