"""Reads the records of a process that may be killed while it writes a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Reader:
    """Reads the lines that are added to a file.

    Args:
        path: the file; may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._place = path, 0

    def fresh(self) -> list[dict[str, Any]]:
        """The whole lines since the last call. A line that was never finished is left out."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._place)
            content = file.read()
        end = content.rfind(b"\n") + 1
        self._place += end
        return [line for text in content[:end].splitlines() if (line := _parsed(text)) is not None]


def all_lines(path: Path) -> tuple[dict[str, Any], ...]:
    """All whole lines of a file."""
    return tuple(Reader(path).fresh())


def end_torn_line(path: Path) -> None:
    """Let the next line begin on its own, whatever a killed process left."""
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None
