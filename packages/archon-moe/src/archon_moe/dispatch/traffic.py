"""Traffic of the all-to-all dispatch: rows and bytes between ranks, as pure functions of the routing.

Ranks are those of a block's ``ExpertParallel.group``, in order. A place is a coordinate along ``ep``: ``etp`` ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Matrix = tuple[tuple[int, ...], ...]
"""Indexed [sender][receiver]."""

INDEX_BYTES, COUNT_BYTES = 4, 8


def rows_between(tokens: Sequence[Sequence[int]], etp: int) -> Matrix:
    """Rows that each rank sends to each other rank.

    Args:
        tokens: [rank][place], how many of a rank's tokens have at least one expert at a place.
        etp: ranks of a place; each of them receives the same rows.
    """
    return tuple(tuple(count for count in of_rank for _ in range(etp)) for of_rank in tokens)


@dataclass(frozen=True)
class RowSizes:
    """The contents of a row.

    Attributes:
        hidden_size: H.
        top_k: experts per token; a row carries an index and a weight for each.
        value_bytes: bytes of an entry of x.
        weight_bytes: bytes of a weight; routing weights are in at least fp32.
    """

    hidden_size: int
    top_k: int
    value_bytes: int = 4
    weight_bytes: int = 4

    @property
    def values(self) -> int:
        """Bytes of a row's hidden states."""
        return self.hidden_size * self.value_bytes

    @property
    def weights(self) -> int:
        """Bytes of a row's weights."""
        return self.top_k * self.weight_bytes


def bytes_between(rows: Matrix, sizes: RowSizes, *, backward: bool = True) -> Matrix:
    """Bytes that each rank sends to each other rank for one block and micro-batch. The diagonal stays on its rank.

    Forward: two counts and, per row, hidden states, expert indices and weights go out; one row of outputs comes back.
    Backward: the gradient of the outputs goes out; those of hidden states and weights come back. Selective
    checkpointing sends nothing again. Full recomputation sends out what the forward pass did, but outputs come back
    again only in blocks with a shared expert.

    Args:
        rows: from ``rows_between``.
        sizes: the contents of a row.
        backward: include the backward pass.
    """
    ranks = range(len(rows))
    out = sizes.values + INDEX_BYTES * sizes.top_k + sizes.weights + (sizes.values if backward else 0)
    back = sizes.values + (sizes.values + sizes.weights if backward else 0)
    return tuple(tuple(2 * COUNT_BYTES + rows[s][r] * out + rows[r][s] * back for r in ranks) for s in ranks)
