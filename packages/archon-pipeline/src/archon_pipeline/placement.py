"""On which pipeline rank a stage lies."""

from __future__ import annotations

from typing import Literal

Placement = Literal["loop", "v"]


def place_stages(placement: Placement, n_ranks: int, n_stages: int) -> tuple[int, ...]:
    """For each stage, the pipeline rank that holds it.

    Args:
        placement: ``loop`` goes round (two ranks, four stages: 0 1 0 1), ``v`` goes down and up again (0 1 1 0).
        n_ranks: pipeline ranks.
        n_stages: of the whole model; a multiple of ``n_ranks`` gives every rank as many.
    """
    if placement == "loop":
        return tuple(stage % n_ranks for stage in range(n_stages))
    period = (*range(n_ranks), *reversed(range(n_ranks)))
    return tuple(period[stage % len(period)] for stage in range(n_stages))
