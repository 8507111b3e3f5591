"""Assigns sequences that share prefixes to micro-batches: a pure function of their prefix tree.

A micro-batch holds a shared prefix once, so its size is not a sum over its sequences. Groups are put in the order of
the tree, in which groups with long common prefixes are neighbours, and cut into runs. Each cut duplicates the prefix
that the groups on both sides share, so cuts go where little is shared: between subtrees.

Legend: T tokens of the batch, n groups, in the order of the tree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from archon_core.errors import DataError
from archon_engine.data.packing import PackingAlgorithm
from archon_engine.data.prefix_tree import PrefixTree


def plan_tree_micro_batches(
    tree: PrefixTree,
    lengths: Sequence[int],
    *,
    n_mbs: int = 1,
    max_tokens_per_mb: int | None = None,
    granularity: int = 1,
    n_mbs_divisor: int = 1,
    algorithm: PackingAlgorithm = "ffd",
    option: str = "mb_spec",
) -> list[list[int]]:
    """``packing.plan_micro_batches`` for sequences that share prefixes, whose tokens are those of a tree.

    Args:
        tree: of all sequences.
        algorithm: ``ffd`` gives the fewest micro-batches, and of these the fewest tokens; ``kk`` the most even ones.

    Raises:
        DataError: a group alone exceeds ``max_tokens_per_mb``, or granularity does not divide the batch.
    """
    if len(lengths) % granularity:
        raise DataError(
            f"{option}.granularity={granularity}: found {len(lengths)} sequences in the batch; "
            f"use a batch of a multiple of {granularity} sequences, or set granularity to a divisor of {len(lengths)}"
        )
    offsets = np.cumsum([0, *lengths])
    spans = [tree.token_of[offsets[i] : offsets[i + granularity]] for i in range(0, len(lengths), granularity)]
    # The last token of a sequence comes after those of all sequences before it in the order of the tree.
    order = sorted(range(len(spans)), key=lambda group: int(spans[group].max()))
    sizes = run_sizes([spans[group] for group in order], tree.n_tokens)
    if max_tokens_per_mb is not None and len(order) and (most := int(np.diag(sizes).max())) > max_tokens_per_mb:
        what = "a sequence" if granularity == 1 else f"a group of {granularity} sequences"
        raise DataError(
            f"{option}.max_tokens_per_mb={max_tokens_per_mb}: found {what} of {most} tokens; "
            "raise the limit to at least that, or shorten the sequences (data.max_length, gconfig.max_new_tokens)"
        )
    ends = _fewest_tokens(sizes, max_tokens_per_mb)
    wanted = math.ceil(max(n_mbs, len(ends), 1) / n_mbs_divisor) * n_mbs_divisor
    if algorithm == "kk" or wanted > len(ends):
        ends = _most_even(sizes, min(wanted, len(order)))
    runs = [order[start:end] for start, end in pairwise((0, *ends))]
    plan = [sorted(i for group in run for i in range(group * granularity, (group + 1) * granularity)) for run in runs]
    return plan + [[] for _ in range(wanted - len(plan))]


def run_sizes(spans: Sequence[NDArray[np.int64]], n_tokens: int) -> NDArray[np.int64]:
    """int64 [n, n]: tokens of the tree of groups a to b, both included, in row a and column b; 0 below the diagonal.

    Args:
        spans: the tree's tokens of every group.
        n_tokens: tokens of the whole tree.
    """
    n = len(spans)
    last = np.full(n_tokens, -1)
    added = np.zeros((n, n), dtype=np.int64)
    for group, span in enumerate(spans):
        tokens = np.unique(span)
        # In a run that starts at a, a token is new if the group that had it last comes before a.
        had = np.bincount(last[tokens] + 1, minlength=n + 1)
        added[: group + 1, group] = np.cumsum(had)[: group + 1]
        last[tokens] = group
    return np.triu(np.cumsum(added, axis=1))


def _fewest_tokens(sizes: NDArray[np.int64], capacity: int | None) -> list[int]:
    """Where runs end: the fewest runs within ``capacity``, and of these those with the fewest tokens together."""
    n = len(sizes)
    if capacity is None or not n:
        return [n] if n else []
    n_runs, tokens, starts = np.zeros(n + 1, dtype=np.int64), np.zeros(n + 1, dtype=np.int64), np.zeros(n + 1, int)
    for end in range(1, n + 1):
        column = sizes[:end, end - 1]
        first = int(np.argmax(column <= capacity))  # the longest run that fits; shorter ones do, too
        candidates = slice(first, end)
        best = np.lexsort((tokens[candidates] + column[candidates], n_runs[candidates]))[0]
        start = first + int(best)
        n_runs[end], tokens[end], starts[end] = n_runs[start] + 1, tokens[start] + column[start], start
    ends = [n]
    while starts[ends[-1]]:
        ends.append(int(starts[ends[-1]]))
    return ends[::-1]


def _most_even(sizes: NDArray[np.int64], n_runs: int) -> list[int]:
    """Where ``n_runs`` runs end, at most as many as groups, such that the largest is as small as possible."""
    n = len(sizes)
    if not n:
        return []
    low, high = int(np.diag(sizes).max()), int(sizes[0, -1])
    while low < high:
        middle = (low + high) // 2
        if len(_filled(sizes, middle)) <= n_runs:
            high = middle
        else:
            low = middle + 1
    ends = _filled(sizes, low)
    while len(ends) < n_runs:
        # Halve the largest run that has several groups.
        bounds = list(pairwise((0, *ends)))
        start, end = max((b for b in bounds if b[1] - b[0] > 1), key=lambda b: sizes[b[0], b[1] - 1])
        cuts = range(start + 1, end)
        ends = sorted([*ends, min(cuts, key=lambda cut: max(sizes[start, cut - 1], sizes[cut, end - 1]))])
    return ends


def _filled(sizes: NDArray[np.int64], capacity: int) -> list[int]:
    """Where runs end that take groups as long as these fit."""
    ends, start = [], 0
    while start < len(sizes):
        start += int(np.searchsorted(sizes[start, start:], capacity, side="right"))
        ends.append(start)
    return ends
