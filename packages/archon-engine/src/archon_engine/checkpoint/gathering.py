"""Gathers sharded weights on the rank that writes them, a box at a time.

Parts are sent point to point over gloo, straight into the tensor being assembled. So the writing rank holds that tensor
and one part in addition to its own shards, and the other ranks only their own shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from archon_core.models.box import Box
from archon_core.ranks.ranks import Ranks
from archon_engine.models.weight_conversion import BoxCopier
from archon_engine.parallel.shards import holders, local_part

WRITER = 0
"""The global rank that writes."""


@dataclass(frozen=True)
class Whereabouts:
    """The ranks that hold a weight.

    Attributes:
        dtype: dtype of its elements.
        parts: global rank -> box, for one rank per part.
    """

    dtype: torch.dtype
    parts: Mapping[int, Box]


def gather_to_writer(weights: Mapping[str, Tensor], ranks: Ranks | None = None) -> BoxCopier:
    """A ``BoxCopier`` of ``weights``, DTensors or plain tensors. Every rank must call it for the same boxes in the same
    order.

    Args:
        weights: global name -> weight, for the weights of this process.
        ranks: all processes, if they hold different weights, as pipeline stages do. This call is then collective.
    """
    rank = dist.get_rank() if dist.is_initialized() else WRITER
    inbox = _Inbox()
    elsewhere = {} if ranks is None else _exchange_whereabouts(weights, ranks)

    @torch.no_grad()
    def copy(name: str, box: Box, destination: Tensor | None) -> None:
        weight = weights[name].detach() if name in weights else None
        there = elsewhere[name] if name in elsewhere else _whereabouts(weight, WRITER)
        for holder, held in there.parts.items():
            part = held.intersect(box)
            if part is None or rank not in (holder, WRITER):
                continue
            if rank == holder:
                local, held_here = local_part(weight)
                values = local[part.relative_to(held_here.start).slices]
            else:
                values = inbox.receive(part, there.dtype, holder)
            if destination is not None:
                destination[part.relative_to(box.start).slices].copy_(values)
            else:
                dist.send(values.cpu().contiguous(), WRITER)

    return copy


def _whereabouts(weight: Tensor, rank: int) -> Whereabouts:
    """The whereabouts of one weight; a plain tensor counts as held by ``rank``."""
    is_sharded = isinstance(weight, DTensor)
    return Whereabouts(weight.dtype, holders(weight) if is_sharded else {rank: Box.whole(tuple(weight.shape))})


def _exchange_whereabouts(weights: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Whereabouts]:
    """Exchange the whereabouts of all weights. The first rank of a mesh reports its DTensors; of several reports on a
    plain tensor, that of the lowest rank counts."""
    own = {
        name: _whereabouts(weight, ranks.rank)
        for name, weight in weights.items()
        if not isinstance(weight, DTensor) or int(weight.device_mesh.mesh.flatten()[0]) == ranks.rank
    }
    return {name: place for part in reversed(ranks.gather(own)) for name, place in part.items()}


class _Inbox:
    """One receive buffer for all parts. Separate ones, when freed, would not return to the system at once."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def receive(self, part: Box, dtype: torch.dtype, sender: int) -> Tensor:
        """Receive a part from ``sender``; the result is valid until the next call."""
        size = part.numel * dtype.itemsize
        if self._bytes.numel() < size:
            self._bytes = torch.empty(size, dtype=torch.uint8)
        values = self._bytes[:size].view(dtype).view(part.shape)
        dist.recv(values, sender)
        return values
