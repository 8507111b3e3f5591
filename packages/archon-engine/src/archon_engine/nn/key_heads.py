"""Exchanges key and value heads if the number of tensor ranks does not divide them.

Each query head reads one key head, and tensor rank r has the r-th share of the query heads. Where the ranks divide the
key heads, a rank's share of the projection's outputs is exactly what its queries read. Elsewhere, with fewer key heads
than ranks for example, that share is part of a head, or of heads that other ranks read too. There the ranks exchange
outputs until each has the whole heads that its queries read. Backward sums the gradients of all readers of a head on
the ranks that computed it.

Exchanging outputs, not weights, keeps one owner for every row of a weight: gradient norms, optimizers and checkpoints
need not know about copies.

Legend: T tokens, F outputs of the projection on all ranks together, D head dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from archon_core.models.box import chunk_of
from archon_engine import compat


@dataclass(frozen=True)
class HeadExchange:
    """The outputs that a rank sends and receives to get the key heads that its query heads read.

    Attributes:
        group: the tensor ranks.
        sent: for each rank, the first of this rank's outputs that it needs, and their number. Plain numbers, which
            torch.compile can trace.
        received: number of outputs from each rank.
        head_dim: D.
        heads: indices of the local heads among the received ones, in order. A head occurs twice if this rank's queries
            begin or end inside the group that reads it.
    """

    group: Any
    sent: tuple[tuple[int, int], ...]
    received: tuple[int, ...]
    head_dim: int
    heads: tuple[int, ...]

    @classmethod
    def plan(cls, outputs: int, n_heads: int, *, group: Any, rank: int, size: int) -> HeadExchange:
        """The exchange for a projection of ``outputs`` features, ``n_heads`` heads, over ``size`` ranks.

        ``size`` and ``n_heads`` both divide the number of query heads.
        """
        head_dim = outputs // n_heads
        owned = [chunk_of(outputs, size, r) for r in range(size)]
        read = [_heads_read(n_heads, size, r) for r in range(size)]
        needed = [range(heads[0] * head_dim, (heads[-1] + 1) * head_dim) for heads in read]
        own = owned[rank]
        sent = [_common(own, part) for part in needed]
        return cls(
            group=group,
            sent=tuple((part.start - own.start, len(part)) for part in sent),
            received=tuple(len(_common(part, needed[rank])) for part in owned),
            head_dim=head_dim,
            heads=tuple(head - read[rank][0] for head in read[rank]),
        )

    def apply(self, x: Tensor) -> Tensor:
        """This rank's outputs [..., T, own part of F] to its heads, side by side: [..., T, heads x D]."""
        # An all-to-all splits dim 0, so features come first. Parts that several ranks read are sent to each of them.
        rows = x.movedim(-1, 0)
        parts = torch.cat([rows.narrow(0, first, count) for first, count in self.sent])
        came = compat.all_to_all_with_grad(parts, self.group, [count for _, count in self.sent], self.received)
        if self.heads != tuple(range(len(self.heads))):
            # Heads that occur twice share one tensor here, so autograd sums their gradients. Indexed by plain numbers:
            # an index tensor would be a constant on one device in compiled graphs.
            each = came.unflatten(0, (-1, self.head_dim))
            came = torch.cat([each[head] for head in self.heads])
        # Attention kernels want the features of a token side by side.
        return came.movedim(0, -1).contiguous()


def needs_exchange(n_heads: int, size: int) -> bool:
    """Whether ``size`` tensor ranks must exchange parts of ``n_heads`` key heads."""
    return n_heads % size != 0


def _heads_read(n_heads: int, size: int, rank: int) -> list[int]:
    """The key heads of a rank's queries, in order, repeated so that all ranks have equally many.

    Attention needs a number of key heads that divides the rank's query heads. A head whose readers lie on two ranks is
    therefore repeated as in Ulysses: by the least number of copies that makes the ranks divide the heads.
    """
    copies = math.lcm(n_heads, size) // n_heads
    local = n_heads * copies // size
    return [place // copies for place in range(rank * local, (rank + 1) * local)]


def _common(a: range, b: range) -> range:
    """The intersection of two ranges; an empty range within ``a`` when they are disjoint."""
    start = min(max(a.start, b.start), a.stop)
    return range(start, max(start, min(a.stop, b.stop)))
