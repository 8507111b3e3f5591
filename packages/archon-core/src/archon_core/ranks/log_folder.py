"""Folders for the output of ranks."""

from __future__ import annotations

import itertools
from pathlib import Path


def new_log_folder(run: Path) -> Path:
    """Create ``logs/start-N`` in the run folder, with the first free number: a resumed run keeps earlier logs."""
    for number in itertools.count(1):
        path = run / "logs" / f"start-{number}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise AssertionError
