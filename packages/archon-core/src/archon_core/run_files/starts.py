"""``starts.json``: every start of a run with its environment, and how it ended. Written by archon-train.

A process that is killed leaves its start without an end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from archon_core.errors import DataError

STARTS = "starts.json"
"""In the run folder."""

Ending = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True)
class Start:
    """One start of a run; the first one, or a resumption.

    Attributes:
        time: when it started, ISO 8601 in UTC.
        resumed_from: step of the checkpoint that it continued; ``None`` for a new run.
        command: the command line.
        environment: versions, machine and git commit: name -> text.
        total_steps: training steps of the whole run; ``None`` until they are known.
        ended: when it ended, ISO 8601 in UTC; empty while it runs, and if it was killed.
        ending: how it ended; ``None`` likewise.
        error: message of the error that it failed with.
    """

    time: str
    resumed_from: int | None = None
    command: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    total_steps: int | None = None
    ended: str = ""
    ending: Ending | None = None
    error: str = ""


def render_starts(starts: list[Start]) -> str:
    """The content of the file."""
    return json.dumps([asdict(start) for start in starts], indent=2) + "\n"


def read_starts(run_folder: Path) -> list[Start]:
    """The starts of a run, the first one first; none if it has no such file.

    Raises:
        DataError: the file is damaged.
    """
    file = run_folder / STARTS
    if not file.is_file():
        return []
    known = {one.name for one in fields(Start)}
    try:
        return [_start({name: value for name, value in one.items() if name in known}) for one in _entries(file)]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file}: found damaged content ({error}); allowed is what archon train writes; remove the file"
        ) from error


def _entries(file: Path) -> list[dict[str, Any]]:
    entries = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(entries, list):
        raise TypeError("it is not a list")
    return entries


def _start(values: dict[str, Any]) -> Start:
    environment = values.get("environment", {})
    return Start(**{**values, "environment": {str(name): str(text) for name, text in environment.items()}})
