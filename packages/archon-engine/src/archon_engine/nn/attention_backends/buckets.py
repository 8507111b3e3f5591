"""Decides which packed sequences are attended in one batched call.

Hundreds of short sequences, one by one, would cost hundreds of kernel launches. Instead, sequences of similar length
are batched, with padding at the end of the shorter ones: causal attention never looks there, so no mask is needed.
Segments of a prefix tree that are equally far from the start of their paths are batched likewise, such as the samples
of one prompt, and then share a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

LEAST_FILL = 0.8
"""A sequence joins a bucket if it has at least this share of the longest one's length. So padding adds at most a
quarter to the tokens, in exchange for a few calls instead of one per length. On sequences of 12 to 36 tokens, more
padding was not faster."""


@dataclass(frozen=True)
class Bucket:
    """Sequences that go into one call.

    Attributes:
        length: length of the longest sequence, to which all are padded.
        sequences: their indices in the pack.
        n_before: keys before the first query of every sequence.
    """

    length: int
    sequences: tuple[int, ...]
    n_before: int = 0

    @property
    def n_rows(self) -> int:
        """Number of queries, with padding."""
        return self.length * len(self.sequences)

    @property
    def n_key_rows(self) -> int:
        """Number of keys, with padding."""
        return (self.n_before + self.length) * len(self.sequences)


@dataclass(frozen=True)
class BucketPlan:
    """A layout of padded rows, bucket after bucket, sequence after sequence.

    Attributes:
        buckets: in the order of the rows.
        token_of_row: for every row of queries the token that it holds; padding repeats its sequence's last token.
            ``None`` when rows are tokens, in the same order.
        key_of_row: for every row of keys the key that it holds, counted over all paths end to end; likewise. Without
            keys before the queries it is ``token_of_row``.
        row_of_token: for every token its row of queries; likewise.
    """

    buckets: tuple[Bucket, ...]
    token_of_row: tuple[int, ...] | None
    key_of_row: tuple[int, ...] | None
    row_of_token: tuple[int, ...] | None


def plan_buckets(lengths: Sequence[int], n_before: Sequence[int] | None = None) -> BucketPlan:
    """Group sequences, packed end to end, into buckets of similar length and with equally many keys before.

    Args:
        lengths: queries of each sequence.
        n_before: keys of each sequence before its first query; ``None`` for none.
    """
    before = [0] * len(lengths) if n_before is None else n_before
    buckets: list[Bucket] = []
    members: list[int] = []
    for sequence in sorted(range(len(lengths)), key=lambda i: (before[i], -lengths[i])):
        if members and not _fits(lengths, before, sequence, members[0]):
            buckets.append(Bucket(lengths[members[0]], tuple(sorted(members)), before[members[0]]))
            members = []
        members.append(sequence)
    if members:
        buckets.append(Bucket(lengths[members[0]], tuple(sorted(members)), before[members[0]]))
    buckets.sort(key=lambda bucket: bucket.sequences)

    token_of_row, row_of_token = _rows(lengths, buckets, [bucket.length for bucket in buckets])
    key_of_row = token_of_row
    if n_before is not None:
        n_keys = [n + length for n, length in zip(before, lengths, strict=True)]
        key_of_row, _ = _rows(n_keys, buckets, [bucket.n_before + bucket.length for bucket in buckets])
    return BucketPlan(tuple(buckets), token_of_row, key_of_row, row_of_token)


def _fits(lengths: Sequence[int], before: Sequence[int], sequence: int, longest: int) -> bool:
    """Whether a sequence goes into the bucket whose longest one is ``longest``."""
    return before[sequence] == before[longest] and lengths[sequence] >= LEAST_FILL * lengths[longest]


def _rows(
    lengths: Sequence[int], buckets: Sequence[Bucket], padded: Sequence[int]
) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """For every row of the buckets its element, of sequences of ``lengths`` end to end, and the row of each element;
    ``None`` for both when rows are elements in the same order.

    Args:
        padded: rows of each sequence of a bucket.
    """
    starts = [0, *accumulate(lengths)]
    element_of_row: list[int] = []
    row_of_element = [0] * starts[-1]
    for bucket, size in zip(buckets, padded, strict=True):
        for sequence in bucket.sequences:
            first_row, start, length = len(element_of_row), starts[sequence], lengths[sequence]
            row_of_element[start : start + length] = range(first_row, first_row + length)
            element_of_row += [*range(start, start + length), *[start + length - 1] * (size - length)]
    if element_of_row == list(range(starts[-1])):
        return None, None
    return tuple(element_of_row), tuple(row_of_element)
