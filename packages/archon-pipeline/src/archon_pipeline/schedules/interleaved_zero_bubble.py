"""Interleaved zero bubble: several stages per rank, and weight gradients fill the units in which ranks would wait.

Another rank waits for the gradient of a stage's input, but none for the gradients of its weights, so these can be
delayed. The last rank starts p - 1 units after the first, which nothing can fill, so the least possible bubble with
unit costs is (p - 1) / (3 v m). The lists here reach it for every m >= p, with at most the activations of 1F1B.
"""

from __future__ import annotations

import functools

from archon_core.contracts.pipeline import RankActions
from archon_pipeline.placement import count_stages_per_rank, place_stages
from archon_pipeline.schedules.list_scheduling import Rule, find_schedule

# Found by search: for every p up to 16, v from 2 to 4 and m >= p one of these reaches the least bubble (the tests
# sample these sizes).
_RULES = (
    Rule("alternating", "deepest", "shallowest", backlog="ranks before"),
    Rule("alternating", "deepest", "shallowest", backlog="ranks before", reserves_room=True),
    Rule("alternating", "rounds", "deepest", backlog="ranks before"),
    Rule("alternating", "deepest", "deepest", backlog="ranks before"),
)


@functools.lru_cache(maxsize=32)
def interleaved_zero_bubble(n_ranks: int, n_stages: int, n_micro_batches: int) -> RankActions:
    """The actions of interleaved zero bubble (after ZB-H1 of arXiv:2401.10241), for any number of micro-batches.

    Raises:
        ConfigError: ranks do not all have the same number of stages, at least 2.
    """
    per_rank = count_stages_per_rank("InterleavedZeroBubble", n_ranks, n_stages, n_micro_batches)
    # The peak of 1F1B: p micro-batches through all stages of a rank.
    limit = per_rank * min(n_ranks, n_micro_batches)
    return find_schedule(place_stages("loop", n_ranks, n_stages), n_micro_batches, _RULES, limit)
