"""ZBV: two stages per rank, placed down the ranks and up again, so the first rank holds the first and the last stage.

The first backward pass therefore starts on the first rank, and every rank has forward work on both ways of the V. With
unit costs the bubble is (p - 1) / (6 m) for every m >= p, the least possible with two stages per rank: the last rank
starts p - 1 units late and never waits again. Peak activations are at most those of 1F1B.
"""

from __future__ import annotations

import functools

from archon_core.contracts.pipeline import RankActions
from archon_pipeline.placement import count_stages_per_rank, place_stages
from archon_pipeline.schedules.list_scheduling import Rule, find_schedule

_STAGES_PER_RANK = 2
# Forward first, deepest stage first: a micro-batch should come back up the V before the next one starts down, so that
# the gradients begin early. Found by search: for every p up to 16 and m >= p one of these reaches the least bubble (the
# tests sample these sizes).
_RULES = (
    Rule("first", "deepest", "shallowest", backlog="none"),
    Rule("first", "deepest", "deepest", backlog="none", reserves_room=True),
    Rule("first", "deepest", "shallowest", backlog="none", reserves_room=True),
    Rule("first", "deepest", "shallowest", backlog="ranks after"),
)


@functools.lru_cache(maxsize=32)
def zbv(n_ranks: int, n_stages: int, n_micro_batches: int) -> RankActions:
    """The actions of ZBV (section 6 of arXiv:2401.10241), for any number of micro-batches.

    Raises:
        ConfigError: a rank does not have exactly two stages.
    """
    count_stages_per_rank("ZBVZeroBubble", n_ranks, n_stages, n_micro_batches, exactly=_STAGES_PER_RANK)
    # The peak of 1F1B: p micro-batches through both stages of a rank.
    limit = _STAGES_PER_RANK * min(n_ranks, n_micro_batches)
    return find_schedule(place_stages("v", n_ranks, n_stages), n_micro_batches, _RULES, limit)
