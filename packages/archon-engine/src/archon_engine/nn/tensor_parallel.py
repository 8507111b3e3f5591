"""Tensor parallelism as layers see it: this rank's place, collectives with gradients, and local weights.

The residual stream is sharded over tokens (sequence parallelism): each rank holds T / size of them. A region such as
attention gathers the tokens, computes on its share of heads or features, and returns this rank's tokens of the sum over
ranks. Parameters are DTensors; activations are plain tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from archon_core.models.box import chunk_of
from archon_engine import compat

MESH_AXIS = "tp"


@dataclass(frozen=True)
class TensorParallel:
    """A rank's place in its tensor-parallel group.

    Attributes:
        group: the process group.
        rank: place in it.
        size: ranks in it.
        sequence_sharded: whether activations between regions hold 1 / size of the tokens. False during generation,
            where the number of tokens is that of the decoded rows, which ``size`` need not divide. Gradients need true.
    """

    group: Any
    rank: int
    size: int
    sequence_sharded: bool = True

    def own_part(self, extent: int) -> range:
        """The rows that this rank holds of a weight with ``extent`` rows in all; the last ranks may hold fewer."""
        return chunk_of(extent, self.size, self.rank)

    def gather_tokens(self, x: Tensor) -> Tensor:
        """Join the ranks' [T / size, ...] to [T, ...]. Backward returns this rank's tokens of the summed gradients."""
        if not self.sequence_sharded:
            return x
        return compat.all_gather_with_grad(x, 0, self.group)

    def scatter_sum(self, x: Tensor) -> Tensor:
        """Sum the ranks' partial sums [T, ...] and return this rank's tokens, [T / size, ...]. Backward gathers."""
        if self.sequence_sharded:
            return compat.reduce_scatter_with_grad(x, 0, self.group)
        assert not (torch.is_grad_enabled() and x.requires_grad), "whole tokens on every rank are for generation only"
        return compat.all_reduce(x, self.group)

    def sum_over_ranks(self, x: Tensor) -> Tensor:
        """The sum of the ranks' ``x``, on each of them. Backward sums the ranks' gradients."""
        return compat.all_gather_with_grad(x[None], 0, self.group).sum(0)

    def gather_results(self, x: Tensor, dim: int) -> Tensor:
        """See ``gather_results``."""
        return gather_results(x, dim, group=self.group, rank=self.rank, size=self.size)


def gather_results(x: Tensor, dim: int, *, group: Any, rank: int, size: int) -> Tensor:
    """Join the ranks' ``x``, of equal shape, along ``dim``, for a result that every rank goes on to use alike.

    Every rank then computes the same loss from it. So backward takes the rank's own part of the gradient: summing over
    ranks, as the gradient of a plain gather does, would count that loss ``size`` times.

    Args:
        x: this rank's part.
        dim: along which parts are joined.
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


def local_weight(parameter: Tensor) -> Tensor:
    """This rank's part of a layer's parameter, as a plain tensor. Layers read every parameter through this function.

    A replicated parameter sees different tokens or heads on every tensor rank, so its gradient here is a part of the
    sum that ``parallel.tensor.sum_replicated_gradients`` makes once per step. It is not declared ``Partial``: FSDP2
    would sum it in the type of computation, before casting to that of reductions.
    """
    if not isinstance(parameter, DTensor):
        return parameter
    mesh = parameter.device_mesh
    assert mesh.mesh_dim_names == (MESH_AXIS,), f"weight on mesh {mesh.mesh_dim_names}, used outside of forward"
    (placement,) = parameter.placements
    return parameter.to_local(grad_placements=[placement])
