"""ZBV: two stages per rank, down the ranks and up again, so that the rank of the first stage has the last one too.

The first gradients come back to where forward passes begin, and every rank has work on both ways. With unit costs the
bubble is (p - 1) / (6 m) for every m >= p, the least for two stages per rank: the last rank starts p - 1 units late and
never waits again. Peak activations are 1F1B's at most.
"""

from __future__ import annotations

import functools

from archon_core.contracts.pipeline import RankActions
from archon_pipeline.placement import count_stages_per_rank, place_stages
from archon_pipeline.schedules.list_scheduling import Rule, find_schedule

_STAGES_PER_RANK = 2
_RULES = (
    Rule("first", "deepest", "shallowest", backlog="none"),
    Rule("first", "deepest", "deepest", backlog="none", keeps_room=True),
    Rule("first", "deepest", "shallowest", backlog="none", keeps_room=True),
    Rule("first", "deepest", "shallowest", backlog="behind"),
)


@functools.lru_cache(maxsize=32)
def zbv(n_ranks: int, n_stages: int, n_micro_batches: int) -> RankActions:
    """The actions of ZBV (section 6 of arXiv:2401.10241), for any number of micro-batches.

    Raises:
        ConfigError: a rank has not two stages.
    """
    count_stages_per_rank("ZBVZeroBubble", n_ranks, n_stages, n_micro_batches, exactly=_STAGES_PER_RANK)
    limit = _STAGES_PER_RANK * min(n_ranks, n_micro_batches)
    return find_schedule(place_stages("v", n_ranks, n_stages), n_micro_batches, _RULES, limit)
