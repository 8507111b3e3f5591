"""Rows that a balanced router sends between the ranks of experts."""

from __future__ import annotations

from functools import cache
from math import comb


@cache
def distinct_places(n_experts: int, top_k: int, ep: int) -> float:
    """Mean number of places along ``ep`` with at least one expert of a token, all choices equally likely.

    A token goes to a place once, however many of its experts are there (``archon_moe.dispatch.all_to_all``). A place
    has E / P experts, so it has none of a token's K with probability C(E - E/P, K) / C(E, K).
    """
    elsewhere = n_experts - n_experts // ep
    return ep * (1 - comb(elsewhere, top_k) / comb(n_experts, top_k))
