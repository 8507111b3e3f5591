"""The records of a storm: JSON lines that every process appends to a file, and the reader of the whole folder.

A line is written with one call before its process goes on, so a killed server leaves no gap: what it answered, it wrote
down first.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Line = Mapping[str, Any]


class Log:
    """Appends lines to a file. Thread-safe."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def write(self, kind: str, **fields: Any) -> None:
        """Append one line."""
        line = json.dumps({"kind": kind, "at": round(time.monotonic(), 3), **fields})
        os.write(self._descriptor, f"{line}\n".encode())


@dataclass(frozen=True)
class Records:
    """The records of one storm.

    Attributes:
        folder: of the storm.
        sky: what the process that made the storm saw and did.
        trainers: lines per rank.
        servers: lines per incarnation.
    """

    folder: Path
    sky: tuple[Line, ...]
    trainers: tuple[tuple[Line, ...], ...]
    servers: Mapping[str, tuple[Line, ...]]

    @classmethod
    def read(cls, folder: Path) -> Records:
        """Read a folder."""
        trainers = sorted(folder.glob("trainer-*.jsonl"), key=lambda path: int(path.stem.split("-")[1]))
        servers = {}
        for path in sorted(folder.glob("server-*.jsonl")):
            lines = tuple(lines_of(path))
            started = next((line for line in lines if line["kind"] == "started"), None)
            if started is not None:
                servers[started["incarnation"]] = lines
        return cls(folder, tuple(lines_of(folder / "sky.jsonl")), tuple(tuple(lines_of(p)) for p in trainers), servers)

    def weights(self, version: int) -> Path:
        """The folder of the trainer's weights of a version."""
        return self.folder / "weights" / f"v{version}"


def of_kind(lines: tuple[Line, ...], *kinds: str) -> list[Line]:
    """The lines of some kinds."""
    return [line for line in lines if line["kind"] in kinds]


def lines_of(path: Path) -> Iterator[Line]:
    """The lines of one file."""
    for line in path.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)
