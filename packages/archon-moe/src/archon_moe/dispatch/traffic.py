"""Who sends how many rows to whom, and how many bytes that is: functions of how many tokens are routed where.

Legend: ranks are those of a block's ``ExpertParallel``, in order; a place is one along ``ep``, that is, ``etp`` ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Matrix = tuple[tuple[int, ...], ...]
"""Entry [sender][receiver]."""

INDEX_BYTES, COUNT_BYTES = 4, 8


def rows_between(tokens: Sequence[Sequence[int]], etp: int) -> Matrix:
    """Rows that ranks send to each other.

    Args:
        tokens: [rank][place], how many of a rank's tokens have an expert at a place. A token with several of them there
            goes there once.
        etp: ranks of a place; each gets the same rows.
    """
    return tuple(tuple(count for count in of_rank for _ in range(etp)) for of_rank in tokens)


@dataclass(frozen=True)
class RowSizes:
    """What a row consists of.

    Attributes:
        hidden_size: H.
        top_k: experts per token, whose numbers and weights a row carries.
        value_bytes: of an entry of x.
        weight_bytes: of a weight; routers' are in at least fp32.
    """

    hidden_size: int
    top_k: int
    value_bytes: int = 4
    weight_bytes: int = 4

    @property
    def values(self) -> int:
        return self.hidden_size * self.value_bytes

    @property
    def weights(self) -> int:
        return self.top_k * self.weight_bytes


def bytes_between(rows: Matrix, sizes: RowSizes, *, backward: bool = True) -> Matrix:
    """Bytes that ranks send to each other for one block and micro-batch; the diagonal does not leave its rank.

    Forward, two counts, and every row with its experts' numbers and weights, go out, and a row of results comes back.
    Backward, the result's gradient goes out, and those of row and weights come back. Nothing is sent again by selective
    checkpointing; where a block is recomputed as a whole, its forward pass counts twice.

    Args:
        rows: from ``rows_between``.
        backward: whether there is one.
    """
    ranks = range(len(rows))
    out = sizes.values + INDEX_BYTES * sizes.top_k + sizes.weights + (sizes.values if backward else 0)
    back = sizes.values + (sizes.values + sizes.weights if backward else 0)
    return tuple(tuple(2 * COUNT_BYTES + rows[s][r] * out + rows[r][s] * back for r in ranks) for s in ranks)
