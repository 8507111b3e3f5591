"""Interleaved zero bubble: several stages per rank, and weight gradients where ranks would wait.

The gradient of a stage's input is what the rank before it waits for; that of its weights can wait itself. The first
rank in the line of forward passes starts p - 1 units before the last, and nothing can fill that, so with unit costs
(p - 1) / (3 v m) is the least bubble; the lists here reach it for every m >= p, with 1F1B's activations at most.
"""

from __future__ import annotations

import functools

from archon_core.contracts.pipeline import RankActions
from archon_pipeline.placement import count_stages_per_rank, place_stages
from archon_pipeline.schedules.list_scheduling import Rule, find_schedule

_RULES = (
    Rule("in turns", "deepest", "shallowest", backlog="in front"),
    Rule("in turns", "deepest", "shallowest", backlog="in front", keeps_room=True),
    Rule("in turns", "rounds", "deepest", backlog="in front"),
    Rule("in turns", "deepest", "deepest", backlog="in front"),
)


@functools.lru_cache(maxsize=32)
def interleaved_zero_bubble(n_ranks: int, n_stages: int, n_micro_batches: int) -> RankActions:
    """The actions of interleaved zero bubble (after ZB-H1 of arXiv:2401.10241), for any number of micro-batches.

    Raises:
        ConfigError: ranks have not the same number of stages, 2 or more.
    """
    per_rank = count_stages_per_rank("InterleavedZeroBubble", n_ranks, n_stages, n_micro_batches)
    limit = per_rank * min(n_ranks, n_micro_batches)
    return find_schedule(place_stages("loop", n_ranks, n_stages), n_micro_batches, _RULES, limit)
