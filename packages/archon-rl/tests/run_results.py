"""What a run on the stand-in engines leaves behind, as tests compare it."""

from __future__ import annotations

import torch

from archon_train.run.folder import RunFolder
from archon_train.run.metrics import read_metrics

_OF_A_STEP = ("time/", "memory/", "tokens_per_second")
MEASURED = tuple(prefix + name for prefix in ("", "warm_start/", "teacher_warm_start/") for name in _OF_A_STEP)


def rows(folder: RunFolder) -> list[dict[str, float]]:
    """The metrics of a run, without times and memory, which differ between equal runs."""
    return [
        {name: value for name, value in row.items() if not name.startswith(MEASURED)}
        for row in read_metrics(folder.metrics)
    ]


def table(folder: RunFolder) -> torch.Tensor:
    """The weights of the exported model."""
    return torch.load(folder.export / "table.pt")
