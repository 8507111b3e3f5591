"""Pieces of tensors: what one rank holds, and where it lies in the whole. So records need no gathering.

A layout's rank compares its own piece with the same box of the reference's whole tensor. All ranks together cover every
element, and copies are looked at one by one, which a gathered tensor would not show when they have drifted apart.
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
        values: a copy of its own.
        box: where it lies.
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
        """The largest magnitude; 0 for an empty piece, and not finite where some value is not."""
        return float(self.values.abs().max()) if self.values.numel() else 0.0

    def at(self, row: int) -> HeldShard | None:
        """What lies in row number ``row`` of the whole; ``None`` where nothing does."""
        wanted = Box((row, *(0 for _ in self.shape[1:])), (1, *self.shape[1:]))
        part = self.box.intersect(wanted)
        if part is None:
            return None
        start = (0, *part.start[1:])
        values = self.values[part.relative_to(self.box.start).slices]
        return HeldShard(values, Box(start, part.shape), (1, *self.shape[1:]))

    def scaled(self, factor: float) -> HeldShard:
        """The same place, the values times ``factor``."""
        return HeldShard(self.values * factor, self.box, self.shape)


def own_shard(tensor: Tensor) -> HeldShard:
    """A copy of what this rank holds of ``tensor``; of a partial sum, which is no rank's to hold, the whole sum."""
    tensor = tensor.detach()
    if isinstance(tensor, DTensor) and any(placement.is_partial() for placement in tensor.placements):
        return HeldShard.whole(tensor.full_tensor())
    values, box = local_part(tensor)
    return HeldShard(values.clone(), box, tuple(tensor.shape))


def own_gradient(parameter: Tensor) -> HeldShard:
    """``own_shard`` of a parameter's gradient; zeros where there is none."""
    return own_shard(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
