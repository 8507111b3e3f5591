"""Collectives between ranks whose gradients are not those of the plain operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from archon_engine import compat


def gather_results(x: Tensor, dim: int, *, group: Any, rank: int, size: int) -> Tensor:
    """The ranks' ``x`` along ``dim``, for what every rank goes on to use in the same way.

    Backward takes the rank's own part of the gradient, which is the same on every rank, instead of summing it.

    Args:
        x: of equal shape on every rank.
        dim: along which they are joined.
        group: the process group.
        rank: place in it.
        size: ranks in it.
    """
    return _GatherResults.apply(x, dim, group, rank, size)


class _GatherResults(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Any, rank: int, size: int) -> Tensor:
        ctx.dim, ctx.rank, ctx.size = dim, rank, size
        return compat.all_gather(x, dim, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad.chunk(ctx.size, ctx.dim)[ctx.rank].contiguous(), None, None, None, None
