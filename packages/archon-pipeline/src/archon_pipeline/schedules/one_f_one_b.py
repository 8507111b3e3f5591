"""1F1B: after as many forward passes as there are ranks behind, each rank goes forward and back in turns.

The bubble is GPipe's, (p - 1) / m; the activations are those of at most p micro-batches instead of all m.
"""

from __future__ import annotations

from collections.abc import Sequence

from archon_core.contracts.pipeline import Action, ActionKind, RankActions
from archon_pipeline.placement import count_stages_per_rank


def one_f_one_b(n_ranks: int, n_stages: int, n_micro_batches: int) -> RankActions:
    """The actions of 1F1B (arXiv:2006.09503). Raises ConfigError when a rank has not one stage."""
    count_stages_per_rank("1F1B", n_ranks, n_stages, n_micro_batches, exactly=1)
    return tuple(
        alternate(
            [Action(rank, ActionKind.FORWARD, micro_batch) for micro_batch in range(n_micro_batches)],
            [Action(rank, ActionKind.BACKWARD, micro_batch) for micro_batch in range(n_micro_batches)],
            ahead=n_ranks - 1 - rank,
        )
        for rank in range(n_ranks)
    )


def alternate(forward: Sequence[Action], backward: Sequence[Action], *, ahead: int) -> tuple[Action, ...]:
    """``ahead`` forward passes, then forward and backward in turns, then the backward passes that are left.

    Args:
        forward: the rank's forward passes, in order.
        backward: its backward passes, as many.
        ahead: forward passes before the turns begin; more than there are means all.
    """
    ahead = min(ahead, len(forward))
    order = list(forward[:ahead])
    for further, back in zip(forward[ahead:], backward, strict=False):
        order += (further, back)
    order += backward[len(forward) - ahead :]
    return tuple(order)
