"""The rotation of queries and keys as an autograd function, tile by tile.

A rotation is orthogonal, so the gradient of its argument is the gradient of its result, rotated back. It saves nothing
but cosines and sines, which all layers share.

Legend: T tokens, C tokens of a tile, D head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from archon_engine.nn.tiles import tiles_of


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``x`` [T, heads, D] by the angles of ``cos`` and ``sin`` [T, 1, D/2]: element i of the first half together
    with element i of the second."""
    return _Rotate.apply(x, cos, sin)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out = x.new_empty(x.shape)
    for tile in tiles_of(x):
        (first, second), (out_first, out_second) = x[tile].chunk(2, dim=-1), out[tile].chunk(2, dim=-1)
        cos_C, sin_C = cos[tile], sin[tile]
        # Not addcmul, which may round once where transformers rounds twice.
        torch.mul(first, cos_C, out=out_first).sub_(second * sin_C)
        torch.mul(second, cos_C, out=out_second).add_(first * sin_C)
    return out
