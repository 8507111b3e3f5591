"""Shards of tensors: the values that one rank holds, and their box in the whole tensor. So records need no gathering.

A rank compares its shard with the same box of the reference's whole tensor. Together the ranks cover every element, and
every replica is compared, whereas a gathered tensor would hide replicas that diverged.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from archon_core.models.box import Box
from archon_engine.parallel.shards import local_part


@dataclass(frozen=True)
class HeldShard:
    """A part of a tensor.

    Attributes:
        values: a copy of the rank's values.
        box: position in the whole.
        shape: of the whole.
    """

    values: Tensor
    box: Box
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, tensor: Tensor) -> HeldShard:
        """All of a tensor."""
        shape = tuple(tensor.shape)
        return cls(tensor, Box.whole(shape), shape)

    @cached_property
    def largest(self) -> float:
        """The largest magnitude; 0 for an empty shard, and not finite where some value is not."""
        return float(self.values.abs().max()) if self.values.numel() else 0.0

    def at(self, row: int) -> HeldShard | None:
        """The part of the shard in row ``row`` of the whole; ``None`` if there is none."""
        wanted = Box((row, *(0 for _ in self.shape[1:])), (1, *self.shape[1:]))
        part = self.box.intersect(wanted)
        if part is None:
            return None
        start = (0, *part.start[1:])
        values = self.values[part.relative_to(self.box.start).slices]
        return HeldShard(values, Box(start, part.shape), (1, *self.shape[1:]))

    def scaled(self, factor: float) -> HeldShard:
        """The shard with its values times ``factor``."""
        return HeldShard(self.values * factor, self.box, self.shape)


def own_shard(tensor: Tensor) -> HeldShard:
    """A copy of this rank's shard of ``tensor``; for a partial sum, of the whole sum."""
    tensor = tensor.detach()
    if isinstance(tensor, DTensor) and any(placement.is_partial() for placement in tensor.placements):
        return HeldShard.whole(tensor.full_tensor())
    values, box = local_part(tensor)
    return HeldShard(values.clone(), box, tuple(tensor.shape))


def own_gradient(parameter: Tensor) -> HeldShard:
    """``own_shard`` of a parameter's gradient; zeros if it has none."""
    return own_shard(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
