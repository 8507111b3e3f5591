"""Interleaved 1F1B: every rank holds v stages, p apart, so the pipeline fills in steps of 1/v of a rank's work.

A rank takes a round of micro-batches through its first stage, the same round through its second, and so on; a round has
at least p of them, so that the first one is back from the other ranks when its turn comes. The bubble is
(p - 1) / (v m), a v-th of 1F1B's, for more activations and v times as many messages.
"""

from __future__ import annotations

import itertools

from archon_core.contracts.pipeline import Action, ActionKind, RankActions
from archon_pipeline.placement import count_stages_per_rank
from archon_pipeline.schedules.one_f_one_b import alternate


def interleaved_1f1b(n_ranks: int, n_stages: int, n_micro_batches: int) -> RankActions:
    """The actions of interleaved 1F1B (arXiv:2104.04473), for any number of micro-batches.

    Raises:
        ConfigError: ranks have not the same number of stages, 2 or more.
    """
    per_rank = count_stages_per_rank("Interleaved1F1B", n_ranks, n_stages, n_micro_batches)
    rounds = cut_into_rounds(n_micro_batches, n_ranks)
    actions = []
    for rank in range(n_ranks):
        stages = range(rank, n_stages, n_ranks)
        forward = [Action(stage, ActionKind.FORWARD, mb) for round_ in rounds for stage in stages for mb in round_]
        backward = [
            Action(stage, ActionKind.BACKWARD, mb) for round_ in rounds for stage in reversed(stages) for mb in round_
        ]
        # The first micro-batch passes all stages but the last one a round at a time; two more forward passes for every
        # rank behind cover its way there and back.
        ahead = (per_rank - 1) * len(rounds[0]) + 2 * (n_ranks - 1 - rank)
        actions.append(alternate(forward, backward, ahead=ahead))
    return tuple(actions)


def cut_into_rounds(n_micro_batches: int, n_ranks: int) -> tuple[range, ...]:
    """Micro-batches in rounds of ``n_ranks``, or of a few more each when they do not come out even, larger ones first.

    Fewer micro-batches than ranks are one round.
    """
    n_rounds = max(1, n_micro_batches // n_ranks)
    size, over = divmod(n_micro_batches, n_rounds)
    starts = [round_ * size + min(round_, over) for round_ in range(n_rounds + 1)]
    return tuple(range(start, end) for start, end in itertools.pairwise(starts))
