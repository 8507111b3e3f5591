"""Names of the checkpoints of a run: ``checkpoints/step-00000010`` holds the state after ten optimizer steps."""

from __future__ import annotations

import re
from pathlib import Path

_STEP = re.compile(r"step-(\d+)")


def checkpoints_of(run: Path) -> Path:
    """The folder of a run's checkpoints."""
    return run / "checkpoints"


def step_folder(run: Path, step: int) -> Path:
    """The folder of a run's checkpoint after ``step`` optimizer steps."""
    return checkpoints_of(run) / f"step-{step:08d}"


def saved_steps(run: Path) -> list[int]:
    """The steps of a run's complete checkpoints, ascending."""
    if not checkpoints_of(run).is_dir():
        return []
    matches = (_STEP.fullmatch(entry.name) for entry in checkpoints_of(run).iterdir() if entry.is_dir())
    return sorted(int(match[1]) for match in matches if match)
