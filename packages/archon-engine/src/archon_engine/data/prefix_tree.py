"""The prefix tree of a batch: every prefix that sequences share, once.

Sequences are sorted as words in a dictionary. Each of them then shares with all earlier ones what it shares with its
neighbour before, so one comparison per sequence tells how many tokens it adds, and the added tokens of all sequences
one after the other are the nodes of the tree in depth-first order. Sorting and comparing run in C, over whole
sequences.

Legend: S sequences, T tokens of all of them, N tokens of the tree, G segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

NO_TOKEN = -1
"""Predecessor of the first token of a sequence that shares nothing with earlier ones."""


@dataclass(frozen=True)
class PrefixTree:
    """Sequences as paths through a tree of tokens.

    A segment is a run of tokens in depth-first order of which each follows the one before. It starts where a path
    leaves another one. All other tokens of the path to its end lie in earlier segments.

    Attributes:
        token_of: [T], the tree's token for every token of the batch.
        source: [N], one token of the batch that each token of the tree stands for.
        predecessor: [N], the token before on the path; ``NO_TOKEN`` for the first of a path.
        depths: [N], the number of tokens before it on the path: its position in every sequence through it.
        segments: the lengths of the G segments.
        paths: for every segment the tokens of the path to its end, its own included.
    """

    token_of: Integers
    source: Integers
    predecessor: Integers
    depths: Integers
    segments: tuple[int, ...]
    paths: tuple[Integers, ...]

    @property
    def n_tokens(self) -> int:
        """N."""
        return len(self.source)

    @property
    def parents(self) -> tuple[int, ...]:
        """For every segment the token that it continues; ``NO_TOKEN`` for a root."""
        starts = list(accumulate(self.segments, initial=0))[:-1]
        return tuple(int(self.predecessor[start]) for start in starts)

    @property
    def shares(self) -> bool:
        """Whether some token of the tree is in several sequences."""
        return self.n_tokens < len(self.token_of)


def build_prefix_tree(keys: Integers, lengths: Sequence[int]) -> PrefixTree:
    """The tree of sequences that follow one another in ``keys``.

    Args:
        keys: [T], not negative. Tokens are equal if their keys and all keys before them in the sequence are.
        lengths: tokens per sequence.
    """
    offsets = [0, *accumulate(lengths)]
    rows = [keys[start:end] for start, end in pairwise(offsets)]
    token_of, source, predecessor, depths = (np.empty_like(keys) for _ in range(4))
    segments: list[int] = []
    paths: list[Integers] = []
    before, path, n = keys[:0], keys[:0], 0
    for sequence in _sorted(keys, offsets):
        row, start = rows[sequence], offsets[sequence]
        shared, last = common_prefix(before, row), path
        end = n + len(row) - shared
        path = np.concatenate((last[:shared], np.arange(n, end)))
        token_of[start : start + len(row)] = path
        source[n:end] = np.arange(start + shared, start + len(row))
        depths[n:end] = np.arange(shared, len(row))
        if end > n:
            predecessor[n:end] = np.arange(n - 1, end - 1)
            predecessor[n] = path[shared - 1] if shared else NO_TOKEN
            if shared and path[shared - 1] == n - 1:
                # It continues all of the segment before, as later turns of one conversation do.
                segments[-1] += end - n
                paths[-1] = path
            else:
                segments.append(end - n)
                paths.append(path)
        before, n = row, end
    cut = slice(0, n)
    return PrefixTree(token_of, source[cut], predecessor[cut], depths[cut], tuple(segments), tuple(paths))


def common_prefix(a: Integers, b: Integers) -> int:
    """The number of leading tokens in which both agree."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(differs.argmax()) if differs.any() else n


def token_keys(input_ids: Integers, experts: NDArray[np.integer] | None = None) -> Integers:
    """Keys for ``build_prefix_tree``: the ids, or numbers of distinct rows if tokens are routed to recorded experts.

    A token that was routed to other experts in another sequence has other hidden states there, and so have all tokens
    after it.

    Args:
        input_ids: [T].
        experts: [T, ...], recorded experts of every token; ``None`` without.
    """
    if experts is None:
        return input_ids
    columns = (input_ids[:, None].astype(np.int32), experts.reshape(len(input_ids), -1).astype(np.int32))
    rows = np.ascontiguousarray(np.concatenate(columns, axis=1))
    words = rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize)))[:, 0]
    return np.unique(words, return_inverse=True)[1].astype(np.int64)


def _sorted(keys: Integers, offsets: Sequence[int]) -> list[int]:
    # Bytes of big-endian numbers compare as the numbers do, and a prefix comes before what continues it.
    words = keys.astype(">u8").tobytes()
    return sorted(range(len(offsets) - 1), key=lambda i: words[8 * offsets[i] : 8 * offsets[i + 1]])
