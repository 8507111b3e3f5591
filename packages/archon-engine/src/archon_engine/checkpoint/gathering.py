"""Gathers sharded weights on the rank that writes or publishes them, a box at a time.

Parts are sent point to point over gloo, in the dtype of the result and in blocks, straight into the tensor being
assembled. So the writing rank holds that tensor and at most one block in addition to its own shards, and the other
ranks one block.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

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

BLOCK_BYTES = 2**22
"""Size of a message, where rows are not larger: enough for gloo's full speed, and little memory."""


Parts = Mapping[int, Box]
"""Global rank -> box that it holds, for one rank per part of a weight."""


def gather_to_writer(
    weights: Mapping[str, Tensor],
    ranks: Ranks | None = None,
    *,
    dtype: torch.dtype,
    kept_in_fp32: Collection[str] = (),
) -> BoxCopier:
    """A ``BoxCopier`` of ``weights``, DTensors or plain tensors. Every rank must call it for the same boxes in the same
    order.

    Args:
        weights: global name -> weight, for the weights of this process.
        dtype: dtype of the tensors that are assembled; parts are cast to it before they are sent.
        kept_in_fp32: names of weights that are assembled in at least fp32.
        ranks: all processes, if they hold different weights, as pipeline stages do. This call is then collective.
    """
    rank = dist.get_rank() if dist.is_initialized() else WRITER
    inbox = _Inbox()
    elsewhere = {} if ranks is None else _exchange_parts(weights, ranks)

    @torch.no_grad()
    def copy(name: str, box: Box, destination: Tensor | None) -> None:
        weight = weights[name].detach() if name in weights else None
        sent = torch.promote_types(dtype, torch.float32) if name in kept_in_fp32 else dtype
        parts = elsewhere[name] if name in elsewhere else _parts(weight, WRITER)
        for holder, held in parts.items():
            part = held.intersect(box)
            if part is None or rank not in (holder, WRITER):
                continue
            if rank == holder:
                local, held_here = local_part(weight)
                values = local[part.relative_to(held_here.start).slices]
                if destination is not None:
                    destination[part.relative_to(box.start).slices].copy_(values)
                else:
                    for block in _blocks(values, sent):
                        dist.send(block.to(sent).cpu().contiguous(), WRITER)
            elif destination is not None:
                assert destination.dtype == sent, f"{name}: a destination of {destination.dtype} for parts of {sent}"
                for block in _blocks(destination[part.relative_to(box.start).slices], sent):
                    inbox.receive(block, holder)

    return copy


def _parts(weight: Tensor, rank: int) -> Parts:
    """The parts of one weight; a plain tensor counts as held by ``rank``."""
    return holders(weight) if isinstance(weight, DTensor) else {rank: Box.whole(tuple(weight.shape))}


def _exchange_parts(weights: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Parts]:
    """Exchange the parts of all weights. The first rank of a mesh reports its DTensors; of several reports on a plain
    tensor, that of the lowest rank counts."""
    own = {
        name: _parts(weight, ranks.rank)
        for name, weight in weights.items()
        if not isinstance(weight, DTensor) or int(weight.device_mesh.mesh.flatten()[0]) == ranks.rank
    }
    return {name: parts for reported in reversed(ranks.gather(own)) for name, parts in reported.items()}


def _blocks(values: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """Divide a part along its first dim of more than one row. Sender and receiver divide parts of one shape equally."""
    dim = next((dim for dim, extent in enumerate(values.shape) if extent > 1), None)
    if dim is None:
        yield values
        return
    row_bytes = values.numel() // values.shape[dim] * dtype.itemsize
    yield from values.split(max(1, BLOCK_BYTES // max(1, row_bytes)), dim)


class _Inbox:
    """One receive buffer for all parts. Separate ones, when freed, would not return to the system at once."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def receive(self, block: Tensor, sender: int) -> None:
        """Receive a block from ``sender``: in place where its memory is contiguous, and on the host for gloo."""
        if block.is_contiguous() and block.device.type == "cpu":
            dist.recv(block, sender)
            return
        size = block.numel() * block.element_size()
        if self._bytes.numel() < size:
            self._bytes = torch.empty(size, dtype=torch.uint8)
        values = self._bytes[:size].view(block.dtype).view(block.shape)
        dist.recv(values, sender)
        block.copy_(values)
