"""The output of ranks on the launcher's terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TextIO


class RankOutput:
    """Prints whole lines: those of the first rank as they are, others with the rank before them.

    Args:
        stream: where to; ``None`` for the current standard output.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._unfinished: dict[int, bytes] = {}

    def add(self, output: Mapping[int, bytes]) -> None:
        """Print the lines that these bytes complete."""
        for rank, data in output.items():
            *lines, rest = (self._unfinished.pop(rank, b"") + data).split(b"\n")
            if rest:
                self._unfinished[rank] = rest
            for line in lines:
                self._print(rank, line)

    def finish(self) -> None:
        """Print the unfinished lines."""
        for rank, line in sorted(self._unfinished.items()):
            self._print(rank, line)
        self._unfinished.clear()

    def _print(self, rank: int, line: bytes) -> None:
        before = f"rank {rank}: " if rank else ""
        print(before + line.decode("utf-8", errors="replace"), file=self._stream or sys.stdout, flush=True)
