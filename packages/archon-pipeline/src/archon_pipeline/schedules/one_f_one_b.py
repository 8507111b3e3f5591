"""1F1B: a rank runs as many forward passes as there are ranks after it, then alternates forward and backward.

The bubble is that of GPipe, (p - 1) / m; at most p micro-batches are alive instead of all m.
"""

from __future__ import annotations

from collections.abc import Sequence

from archon_core.contracts.pipeline import Action, ActionKind, RankActions
from archon_pipeline.placement import count_stages_per_rank


def one_f_one_b(n_ranks: int, n_stages: int, n_micro_batches: int) -> RankActions:
    """The actions of 1F1B (arXiv:2006.09503). Raises ConfigError unless every rank has one stage."""
    count_stages_per_rank("1F1B", n_ranks, n_stages, n_micro_batches, exactly=1)
    return tuple(
        alternate(
            [Action(rank, ActionKind.FORWARD, micro_batch) for micro_batch in range(n_micro_batches)],
            [Action(rank, ActionKind.BACKWARD, micro_batch) for micro_batch in range(n_micro_batches)],
            warm_up=n_ranks - 1 - rank,
        )
        for rank in range(n_ranks)
    )


def alternate(forward: Sequence[Action], backward: Sequence[Action], *, warm_up: int) -> tuple[Action, ...]:
    """``warm_up`` forward passes, then forward and backward alternating, then the remaining backward passes.

    Args:
        forward: the forward passes of a rank, in order.
        backward: its backward passes, the same number.
        warm_up: forward passes before the first backward pass; limited to all of them.
    """
    warm_up = min(warm_up, len(forward))
    order = list(forward[:warm_up])
    for next_forward, next_backward in zip(forward[warm_up:], backward, strict=False):
        order += (next_forward, next_backward)
    order += backward[len(forward) - warm_up :]
    return tuple(order)
