"""Bringing sharded weights to the rank that writes them, a box at a time.

Parts travel point to point over gloo, straight into the tensor that is being put together: the writing rank holds that
tensor and one part, the others nothing beyond their own.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from archon_core.models.box import Box
from archon_core.models.weight_conversion import BoxCopier
from archon_core.parallel.shards import holders, own_box

WRITER = 0
"""The global rank that writes."""


def gather_to_writer(weights: Mapping[str, Tensor]) -> BoxCopier:
    """A copier of ``weights``, DTensors or plain; every rank must call it for the same boxes in the same order."""
    rank = dist.get_rank() if dist.is_initialized() else WRITER
    inbox = _Inbox()

    @torch.no_grad()
    def copy(name: str, box: Box, destination: Tensor | None) -> None:
        weight = weights[name].detach()
        if not isinstance(weight, DTensor):
            if destination is not None:
                destination.copy_(weight[box.slices])
            return
        for holder, held in holders(weight).items():
            part = held.intersect(box)
            if part is None or rank not in (holder, WRITER):
                continue
            if rank == holder:
                values = weight.to_local()[part.relative_to(own_box(weight).start).slices]
            else:
                values = inbox.receive(part, weight.dtype, holder)
            if destination is not None:
                destination[part.relative_to(box.start).slices].copy_(values)
            else:
                dist.send(values.cpu().contiguous(), WRITER)

    return copy


class _Inbox:
    """One buffer for all parts that arrive: freed ones would not all go back to the system at once."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def receive(self, part: Box, dtype: torch.dtype, sender: int) -> Tensor:
        """The part that ``sender`` sends, valid until the next one."""
        size = part.numel * dtype.itemsize
        if self._bytes.numel() < size:
            self._bytes = torch.empty(size, dtype=torch.uint8)
        values = self._bytes[:size].view(dtype).view(part.shape)
        dist.recv(values, sender)
        return values
