"""Placement: how many stages a pipeline rank holds, and which."""

from __future__ import annotations

from typing import Literal

from archon_core.errors import ConfigError

Placement = Literal["loop", "v"]


def place_stages(placement: Placement, n_ranks: int, n_stages: int) -> tuple[int, ...]:
    """For each stage, the pipeline rank that holds it.

    Args:
        placement: ``loop`` is round-robin (two ranks, four stages: 0 1 0 1), ``v`` goes down and up again (0 1 1 0).
        n_ranks: pipeline ranks.
        n_stages: stages of the whole model; every rank holds the same number if it is a multiple of ``n_ranks``.
    """
    if placement == "loop":
        return tuple(stage % n_ranks for stage in range(n_stages))
    period = (*range(n_ranks), *reversed(range(n_ranks)))
    return tuple(period[stage % len(period)] for stage in range(n_stages))


def count_stages_per_rank(
    schedule: str, n_ranks: int, n_stages: int, n_micro_batches: int, *, exactly: int | None = None
) -> int:
    """Check the arguments of a schedule and return the number of stages per rank.

    Args:
        schedule: name of the schedule, for messages.
        n_ranks: pipeline ranks.
        n_stages: stages of the whole model.
        n_micro_batches: micro-batches of a step.
        exactly: the number of stages per rank that the schedule requires; ``None`` for any number from 2.

    Raises:
        ConfigError: a number is below 1, or the schedule does not support so many stages.
    """
    for what, found in (("pipeline ranks", n_ranks), ("micro-batches", n_micro_batches)):
        if found < 1:
            raise ConfigError(f"{schedule}: found {found} {what}; allowed is 1 or more; give at least 1")
    per_rank, over = divmod(n_stages, n_ranks)
    fits = per_rank == exactly if exactly else per_rank >= 2
    if over or not fits:
        allowed = f"{exactly} per rank" if exactly else "2 or more per rank, the same number on each"
        ranks = "1 rank" if n_ranks == 1 else f"{n_ranks} ranks"
        stages = "1 stage" if n_stages == 1 else f"{n_stages} stages"
        fix = f"cut the model into {exactly * n_ranks}" if exactly else f"cut it into {2 * n_ranks}, {3 * n_ranks}, ..."
        raise ConfigError(f"{schedule}: found {stages} on {ranks}; allowed is {allowed}; {fix}")
    return per_rank
