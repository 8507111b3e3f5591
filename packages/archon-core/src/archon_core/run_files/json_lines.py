"""Reads files with one JSON object per line that a process may have been killed while writing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from archon_core.errors import DataError

Read = TypeVar("Read")


def read_json_lines(
    path: Path, parse: Callable[[Any], Read], *, allowed: str, on_damage: Callable[[DataError], None] | None = None
) -> list[Read]:
    """Parse every line; skips an incomplete last line after a crash.

    Args:
        path: the file.
        parse: raises ValueError, TypeError, AttributeError or KeyError for JSON that is no valid line.
        allowed: what a line must be and what to do about it, for the message.
        on_damage: gets the error of every other line that is not valid; the line is then skipped. By default the first
            such error is raised.

    Raises:
        DataError: another line is not valid, and there is no ``on_damage``.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(parse(json.loads(line)))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            damage = DataError(f"{path}, line {number}: found {line.strip()[:80]!r}; {allowed}")
            if on_damage is None:
                raise damage from error
            on_damage(damage)
    return found
