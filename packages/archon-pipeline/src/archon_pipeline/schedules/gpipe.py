"""GPipe: all forward passes, then all backward passes. Simple; the activations of all micro-batches live at once."""

from __future__ import annotations

from archon_core.contracts.pipeline import Action, ActionKind, RankActions
from archon_pipeline.placement import count_stages_per_rank


def gpipe(n_ranks: int, n_stages: int, n_micro_batches: int) -> RankActions:
    """The actions of GPipe (arXiv:1811.06965). Raises ConfigError unless every rank has one stage."""
    count_stages_per_rank("GPipe", n_ranks, n_stages, n_micro_batches, exactly=1)
    return tuple(
        tuple(
            Action(rank, kind, micro_batch)
            for kind in (ActionKind.FORWARD, ActionKind.BACKWARD)
            for micro_batch in range(n_micro_batches)
        )
        for rank in range(n_ranks)
    )
