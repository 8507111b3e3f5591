"""Deals the tokens of a pack to the ranks that gather keys and values: pure arithmetic on the host.

A token attends to the earlier tokens of its sequence, so later tokens cost more. Equal parts in the order of the pack
would give the last rank almost twice the mean work of a long sequence. Instead, the pack is cut into two blocks per
rank, and the most expensive block goes with the cheapest one, the second most expensive with the second cheapest, and
so on; no other pairs of these blocks have a smaller maximum. For a single sequence, these are the first and the last
block, the second and the last but one, and so on, as in Llama 3 (arXiv:2407.21783, section 3.3.2).

Blocks ignore the boundaries of sequences. All ranks hold equally many tokens of a pack of any lengths, without padding
per sequence, even where a sequence has fewer tokens than there are ranks.

A pack that shares prefixes (``archon_core.contracts.packed.SharedPrefixes``) is dealt likewise. Its tokens lie in
segments of a tree, and a token attends to its path: to as many tokens as it has before it there, wherever these lie.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise


@dataclass(frozen=True)
class Span:
    """Neighbouring tokens of a rank, and the keys that they read.

    Attributes:
        queries: places of the tokens in the pack.
        keys: places of the keys: from the start of the first token's sequence up to the last token.
        lengths: lengths of the sequences among the keys. The first one may begin before the queries.
    """

    queries: range
    keys: range
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """Neighbouring tokens of a rank within a segment of a tree.

    Attributes:
        segment: its number.
        queries: places of the tokens in the pack.
    """

    segment: int
    queries: range


def deal_blocks(lengths: Sequence[int], n_ranks: int, parents: Sequence[int] | None = None) -> tuple[int, ...]:
    """The order in which ranks hold the 2 ``n_ranks`` blocks of a pack: two for rank 0, two for rank 1, and so on.

    The number of tokens is a multiple of the number of blocks. Both blocks of a rank are in the order of the pack.

    Args:
        lengths: of the sequences, or of the segments of a tree.
        n_ranks: number of ranks.
        parents: for every segment of a tree the token that it continues, -1 for none; ``None`` for sequences.
    """
    n_blocks = 2 * n_ranks
    costs = block_costs(lengths, n_blocks, parents)
    ranked = sorted(range(n_blocks), key=lambda block: (costs[block], block))
    pairs = sorted(sorted((ranked[i], ranked[-1 - i])) for i in range(n_ranks))
    return tuple(block for pair in pairs for block in pair)


def block_costs(lengths: Sequence[int], n_blocks: int, parents: Sequence[int] | None = None) -> list[int]:
    """For each of ``n_blocks`` equal blocks of a pack, the number of pairs of a query and a key that it sees."""
    size = sum(lengths) // n_blocks
    costs = [0] * n_blocks
    depths = [0] * len(lengths) if parents is None else first_depths(lengths, parents)
    for stop, length, depth in zip(accumulate(lengths), lengths, depths, strict=True):
        start = stop - length
        for block in range(start // size, -(-stop // size)):
            first, last = (place - start + depth for place in (max(start, block * size), min(stop, (block + 1) * size)))
            costs[block] += (last * (last + 1) - first * (first + 1)) // 2
    return costs


def spans_of(lengths: Sequence[int], ranges: Sequence[range]) -> tuple[Span, ...]:
    """The spans of a rank that holds ``ranges`` of a pack."""
    return tuple(_span(lengths, queries) for queries in ranges)


def _span(lengths: Sequence[int], queries: range) -> Span:
    keys_from, kept = queries.start, []
    for stop, length in zip(accumulate(lengths), lengths, strict=True):
        start = stop - length
        if start < queries.stop and stop > queries.start:
            keys_from = min(keys_from, start)
            kept.append(min(stop, queries.stop) - start)
    return Span(queries, range(keys_from, queries.stop), tuple(kept))


def first_depths(lengths: Sequence[int], parents: Sequence[int]) -> list[int]:
    """For each segment of a tree the number of tokens before it on its path."""
    starts, depths = list(accumulate(lengths, initial=0)), list[int]()
    for parent in parents:
        before = bisect_right(starts, parent) - 1
        depths.append(0 if parent < 0 else depths[before] + parent - starts[before] + 1)
    return depths


def runs_of(lengths: Sequence[int], ranges: Sequence[range]) -> tuple[Run, ...]:
    """The runs of a rank that holds ``ranges`` of a tree, in the order of its tokens.

    Args:
        lengths: of the tree's segments.
        ranges: ascending ranges.
    """
    starts = list(accumulate(lengths, initial=0))
    found = []
    for held in ranges:
        for segment, (start, stop) in enumerate(pairwise(starts)):
            queries = range(max(start, held.start), min(stop, held.stop))
            if queries:
                found.append(Run(segment, queries))
    return tuple(found)
