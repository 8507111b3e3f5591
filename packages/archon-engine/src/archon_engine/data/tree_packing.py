"""Assigns sequences that share prefixes to micro-batches: a pure function of their prefix tree.

A micro-batch holds a shared prefix once, so its size is not a sum over its sequences. Groups are put in the order of
the tree, in which groups with long common prefixes are neighbours, and cut into runs. Each cut duplicates the prefix
that the groups on both sides share, so cuts go where little is shared: between subtrees.

Runs fill micro-batches less well than groups in any order do. Where groups share little besides a prefix of them all,
such as a template, first fit may therefore need fewer micro-batches, and is taken then.

Legend: T tokens of the batch, n groups, in the order of the tree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from archon_engine.data.packing import PackingAlgorithm, check_largest, first_fit_decreasing, groups_of
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
        algorithm: of all cuts in the order of the tree, ``ffd`` takes those with the fewest micro-batches, and of these
            the fewest tokens, unless first fit in any order needs fewer micro-batches. ``kk`` gives the most even
            micro-batches, and so does ``ffd`` where more are wanted.

    Raises:
        DataError: a group alone exceeds ``max_tokens_per_mb``, or granularity does not divide the batch.
    """
    groups = groups_of(len(lengths), granularity, option=option)
    offsets = np.cumsum([0, *lengths])
    spans = [np.unique(tree.token_of[offsets[group.start] : offsets[group.stop]]) for group in groups]
    # The last token of a sequence comes after those of all sequences before it in the order of the tree.
    order = sorted(range(len(spans)), key=lambda group: int(spans[group][-1]))
    most = max((len(span) for span in spans), default=0)
    check_largest(most, max_tokens_per_mb, granularity, option=option)
    runs = Runs([spans[group] for group in order], tree.n_tokens)
    ends = _fewest_tokens(runs, max_tokens_per_mb)
    wanted = math.ceil(max(n_mbs, len(ends), 1) / n_mbs_divisor) * n_mbs_divisor
    if algorithm == "kk" or wanted > len(ends):
        ends = _most_even(runs, min(wanted, len(order)), low=most, high=tree.n_tokens)
    members = [order[start:end] for start, end in pairwise((0, *ends))]
    if algorithm == "ffd" and max_tokens_per_mb is not None and wanted > 1 and spans:
        apart = [sum(lengths[i] for i in group) for group in groups]
        fitted = _first_fit(spans, apart, tree.n_tokens, max_tokens_per_mb, n_mbs, n_mbs_divisor)
        if len(fitted) < wanted:
            members, wanted = fitted, len(fitted)
    plan = [sorted(i for group in run for i in groups[group]) for run in members]
    return plan + [[] for _ in range(wanted - len(plan))]


def _first_fit(
    spans: Sequence[NDArray[np.int64]],
    apart: list[int],
    n_tokens: int,
    capacity: int,
    least: int,
    divisor: int,
) -> list[list[int]]:
    """The groups of micro-batches by ``packing.first_fit_decreasing``, with only the prefix of all groups counted as
    shared, or nothing, whichever needs fewer.

    Args:
        spans: the distinct tokens of every group.
        apart: tokens of every group, without sharing.
    """
    of_all = int(np.count_nonzero(np.bincount(np.concatenate(spans), minlength=n_tokens) == len(spans)))
    sharing = first_fit_decreasing([len(span) - of_all for span in spans], capacity - of_all, least, divisor)
    # Any packing valid without sharing is valid with it, but first fit is not monotone, so try both. A group that
    # exceeds the capacity apart is alone there, and fits.
    return min(sharing, first_fit_decreasing(apart, capacity, least, divisor), key=len)


class Runs:
    """The sizes of runs of neighbouring groups, in tokens of their tree.

    In a run that starts at group a, a token is new in the first group that has it, that is, if the group that had it
    last comes before a. So one number per token tells for all runs whether it counts, and few of these differ.

    Args:
        spans: the distinct tokens of every group.
        n_tokens: tokens of the whole tree.
    """

    def __init__(self, spans: Sequence[NDArray[np.int64]], n_tokens: int) -> None:
        self.n_groups = len(spans)
        last = np.full(n_tokens, -1)
        firsts, counts, self._starts = [], [], [0]
        for group, tokens in enumerate(spans):
            # New in runs that start at ``first`` or later.
            first, count = np.unique(last[tokens] + 1, return_counts=True)
            last[tokens] = group
            firsts.append(first)
            counts.append(count)
            self._starts.append(self._starts[-1] + len(first))
        self._firsts = np.concatenate([*firsts, np.empty(0, dtype=np.int64)])
        self._counts = np.concatenate([*counts, np.empty(0, dtype=np.int64)])
        self._groups = np.repeat(np.arange(self.n_groups), np.diff(self._starts))

    def sizes(self, start: int, capacity: int | None = None) -> NDArray[np.int64]:
        """The sizes of the runs from group ``start`` to each group from it on, as long as they are within
        ``capacity``."""
        width = self.n_groups if capacity is None else 32
        while True:
            stop = min(start + width, self.n_groups)
            part = slice(self._starts[start], self._starts[stop])
            added = np.where(self._firsts[part] <= start, self._counts[part], 0)
            sizes = np.cumsum(np.bincount(self._groups[part] - start, added, minlength=stop - start)).astype(np.int64)
            if capacity is None:
                return sizes
            fitting = int(np.searchsorted(sizes, capacity, side="right"))
            if fitting < len(sizes) or stop == self.n_groups:
                return sizes[:fitting]
            width *= 2


def _fewest_tokens(runs: Runs, capacity: int | None) -> list[int]:
    """Where runs end: the fewest runs within ``capacity``, and of these those with the fewest tokens together."""
    n = runs.n_groups
    if capacity is None or not n:
        return [n] if n else []
    n_runs, tokens, before = np.full(n + 1, n + 1), np.zeros(n + 1, dtype=np.int64), np.zeros(n + 1, dtype=np.int64)
    n_runs[0] = 0
    for start in range(n):
        sizes = runs.sizes(start, capacity)
        ends = slice(start + 1, start + 1 + len(sizes))
        number, total = n_runs[start] + 1, tokens[start] + sizes
        better = (n_runs[ends] > number) | ((n_runs[ends] == number) & (tokens[ends] > total))
        n_runs[ends] = np.where(better, number, n_runs[ends])
        tokens[ends] = np.where(better, total, tokens[ends])
        before[ends] = np.where(better, start, before[ends])
    ends_here = [n]
    while before[ends_here[-1]]:
        ends_here.append(int(before[ends_here[-1]]))
    return ends_here[::-1]


def _most_even(runs: Runs, n_runs: int, *, low: int, high: int) -> list[int]:
    """Where ``n_runs`` runs end, at most as many as groups, such that the largest is as small as possible.

    Args:
        low: size of the largest group.
        high: size of all groups together.
    """
    if not runs.n_groups:
        return []
    while low < high:
        middle = (low + high) // 2
        if len(_filled(runs, middle)) <= n_runs:
            high = middle
        else:
            low = middle + 1
    ends = _filled(runs, low)
    while len(ends) < n_runs:
        # Cut the largest run that has several groups, where it reaches half of its size.
        of_runs = [(start, runs.sizes(start)[: end - start]) for start, end in pairwise((0, *ends))]
        start, sizes = max((run for run in of_runs if len(run[1]) > 1), key=lambda run: run[1][-1])
        half = int(np.searchsorted(sizes, sizes[-1] / 2, side="right"))
        ends = sorted([*ends, start + min(max(half, 1), len(sizes) - 1)])
    return ends


def _filled(runs: Runs, capacity: int) -> list[int]:
    """Where runs end that take groups as long as these fit."""
    ends, start = [], 0
    while start < runs.n_groups:
        start += len(runs.sizes(start, capacity))
        ends.append(start)
    return ends
