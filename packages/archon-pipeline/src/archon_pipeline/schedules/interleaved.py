"""Interleaved 1F1B: every rank holds v stages, p apart, so the pipeline fills in steps of 1/v of a rank's work.

A rank runs a round of micro-batches through its first stage, then the same round through its second, and so on. A round
has at least p micro-batches, so that the first one has passed the other ranks when its next stage on this rank is due.
The bubble is (p - 1) / (v m), a v-th of that of 1F1B, for more activations and v times as many messages.
"""

from __future__ import annotations

import itertools

from archon_core.contracts.pipeline import Action, ActionKind, RankActions
from archon_pipeline.placement import count_stages_per_rank
from archon_pipeline.schedules.one_f_one_b import alternate


def interleaved_1f1b(n_ranks: int, n_stages: int, n_micro_batches: int) -> RankActions:
    """The actions of interleaved 1F1B (arXiv:2104.04473), for any number of micro-batches.

    Raises:
        ConfigError: ranks do not all have the same number of stages, at least 2.
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
        # Warm-up of Megatron-LM: one round for each stage of this rank but the last, and two passes per rank after this
        # one, the time in which a micro-batch reaches the last rank and its gradient returns.
        warm_up = (per_rank - 1) * len(rounds[0]) + 2 * (n_ranks - 1 - rank)
        actions.append(alternate(forward, backward, warm_up=warm_up))
    return tuple(actions)


def cut_into_rounds(n_micro_batches: int, n_ranks: int) -> tuple[range, ...]:
    """Split micro-batches into rounds of at least ``n_ranks``, as even as possible, larger rounds first.

    Fewer micro-batches than ranks form one round.
    """
    # Larger rounds, where Megatron-LM and torch require a multiple: a smaller round would make ranks wait for its first
    # micro-batch to come round.
    n_rounds = max(1, n_micro_batches // n_ranks)
    size, over = divmod(n_micro_batches, n_rounds)
    starts = [round_ * size + min(round_, over) for round_ in range(n_rounds + 1)]
    return tuple(range(start, end) for start, end in itertools.pairwise(starts))
