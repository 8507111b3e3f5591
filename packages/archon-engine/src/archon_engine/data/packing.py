"""Assigns sequences to micro-batches: pure functions of lengths.

The split affects speed and memory, never the numbers. Any assignment is correct; these are balanced.
A *group* is ``granularity`` consecutive sequences that stay together.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Literal

from archon_core.errors import DataError

PackingAlgorithm = Literal["ffd", "kk"]


def plan_micro_batches(
    lengths: Sequence[int],
    *,
    n_mbs: int = 1,
    max_tokens_per_mb: int | None = None,
    granularity: int = 1,
    n_mbs_divisor: int = 1,
    algorithm: PackingAlgorithm = "ffd",
    option: str = "mb_spec",
) -> list[list[int]]:
    """Assign sequences to micro-batches.

    Args:
        lengths: tokens per sequence.
        n_mbs: minimum number of micro-batches.
        max_tokens_per_mb: maximum number of tokens in one; ``None`` for no limit.
        granularity: consecutive sequences that stay together.
        n_mbs_divisor: the number of micro-batches is a multiple of it.
        algorithm: ``ffd``, first fit decreasing, gives the fewest micro-batches; ``kk``, Karmarkar-Karp differencing
            (k-way, doi:10.5555/892131), the most even ones.
        option: dotted name of the options ``mb_spec``, for messages.

    Returns:
        For each micro-batch, indices into ``lengths``, ascending. Micro-batches are empty if there are fewer groups
        than ``n_mbs`` or the divisor require.

    Raises:
        DataError: a group alone exceeds ``max_tokens_per_mb``, or granularity does not divide the batch.
    """
    groups = groups_of(len(lengths), granularity, option=option)
    sizes = [sum(lengths[i] for i in group) for group in groups]
    check_largest(max(sizes, default=0), max_tokens_per_mb, granularity, option=option)
    place = {"ffd": first_fit_decreasing, "kk": _differencing}[algorithm]
    bins = place(sizes, max_tokens_per_mb, n_mbs, n_mbs_divisor)
    return [sorted(i for group in members for i in groups[group]) for members in bins]


def groups_of(n_sequences: int, granularity: int, *, option: str) -> list[range]:
    """The groups of ``granularity`` consecutive sequences.

    Raises:
        DataError: granularity does not divide the batch.
    """
    if n_sequences % granularity:
        raise DataError(
            f"{option}.granularity={granularity}: found {n_sequences} sequences in the batch; "
            f"use a batch of a multiple of {granularity} sequences, or set granularity to a divisor of {n_sequences}"
        )
    return [range(start, start + granularity) for start in range(0, n_sequences, granularity)]


def check_largest(n_tokens: int, max_tokens_per_mb: int | None, granularity: int, *, option: str) -> None:
    """Raise DataError if the largest group, of ``n_tokens`` tokens, exceeds ``max_tokens_per_mb``."""
    if max_tokens_per_mb is not None and n_tokens > max_tokens_per_mb:
        what = "a sequence" if granularity == 1 else f"a group of {granularity} sequences"
        raise DataError(
            f"{option}.max_tokens_per_mb={max_tokens_per_mb}: found {what} of {n_tokens} tokens; "
            "raise the limit to at least that, or shorten the sequences (data.max_length, gconfig.max_new_tokens)"
        )


def _round_up(value: int, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple


def first_fit_decreasing(sizes: list[int], capacity: int | None, least: int, divisor: int) -> list[list[int]]:
    """Items of each bin: the largest item first, each into the first bin with room for it.

    Args:
        sizes: of the items.
        capacity: of a bin; ``None`` for no limit, with as few bins as allowed. A larger item gets a bin alone.
        least: minimum number of bins.
        divisor: the number of bins is a multiple of it. Bins are empty if there are fewer items.
    """
    if capacity is None:
        return _least_loaded(sizes, range(len(sizes)), _round_up(max(least, 1), divisor))
    bins: list[list[int]] = []
    loads: list[int] = []
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        fitting = next((b for b, load in enumerate(loads) if load + sizes[item] <= capacity), None)
        if fitting is None:
            bins.append([])
            loads.append(0)
            fitting = len(bins) - 1
        bins[fitting].append(item)
        loads[fitting] += sizes[item]
    # If more micro-batches are needed than first fit opened, halve the fullest divisible one, which keeps the limit.
    wanted = _round_up(max(least, len(bins), 1), divisor)
    while len(bins) < wanted:
        divisible = [b for b in range(len(bins)) if len(bins[b]) > 1]
        if not divisible:
            bins.extend([] for _ in range(wanted - len(bins)))
            break
        fullest = max(divisible, key=lambda b: sum(sizes[i] for i in bins[b]))
        bins[fullest : fullest + 1] = _least_loaded(sizes, bins[fullest], 2)
    return bins


def _least_loaded(sizes: list[int], items: Sequence[int], n_bins: int) -> list[list[int]]:
    """Assign items largest first, each to the least loaded bin, and of these to the one with the fewest items: items
    may have size 0."""
    bins: list[list[int]] = [[] for _ in range(n_bins)]
    heap = [(0, 0, b) for b in range(n_bins)]
    for item in sorted(items, key=lambda i: -sizes[i]):
        load, count, b = heapq.heappop(heap)
        bins[b].append(item)
        heapq.heappush(heap, (load + sizes[item], count + 1, b))
    return bins


def _differencing(sizes: list[int], capacity: int | None, least: int, divisor: int) -> list[list[int]]:
    fewest = 1 if capacity is None else max(1, math.ceil(sum(sizes) / capacity))
    n_bins = _round_up(max(least, fewest), divisor)
    while True:
        bins = _karmarkar_karp(sizes, n_bins)
        if capacity is None or all(sum(sizes[i] for i in members) <= capacity for members in bins):
            return bins
        n_bins += divisor


def _karmarkar_karp(sizes: list[int], n_bins: int) -> list[list[int]]:
    """Repeatedly merge the two partitions whose loads differ most, heaviest bin with lightest."""
    if not sizes:
        return [[] for _ in range(n_bins)]
    heap = []
    for item, size in enumerate(sizes):
        partition = [(0, ())] * (n_bins - 1) + [(size, (item,))]
        heapq.heappush(heap, (-size, item, partition))
    ties = len(sizes)
    while len(heap) > 1:
        _, _, first = heapq.heappop(heap)
        _, _, second = heapq.heappop(heap)
        merged = sorted(
            (load_a + load_b, items_a + items_b)
            for (load_a, items_a), (load_b, items_b) in zip(first, reversed(second), strict=True)
        )
        ties += 1
        heapq.heappush(heap, (merged[0][0] - merged[-1][0], ties, merged))
    return [list(items) for _, items in heap[0][2]]
