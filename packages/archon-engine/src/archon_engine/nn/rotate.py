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

from archon_engine.nn.tiles import is_one_tile, tiles_of


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``x`` [T, heads, D] by the angles of ``cos`` and ``sin`` [T, 1, D/2]: element i of the first half together
    with element i of the second."""
    if not torch.is_grad_enabled():
        return _rotated(x, cos, sin)
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
    if is_one_tile(x):
        _rotate_tile(x, cos, sin, out)
    else:
        for tile in tiles_of(x):
            _rotate_tile(x[tile], cos[tile], sin[tile], out[tile])
    return out


def _rotate_tile(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    (first, second), (out_first, out_second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    # Not addcmul, which may round once where transformers rounds twice.
    torch.mul(first, cos, out=out_first).sub_(second * sin)
    torch.mul(second, cos, out=out_second).add_(first * sin)
