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
    """Rotate ``x`` [T, heads, D] by angles: element i of the first half together with element i of the second.

    Args:
        x: heads.
        cos: [T, 1, D], of the angles for the first half, then again for the second. Operations over whole heads take
            less time than twice as many over halves, which are short rows.
        sin: likewise.
    """
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
        return _rotated(grad, *ctx.saved_tensors, back=True), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    out = x.new_empty(x.shape)
    if is_one_tile(x):
        _rotate_tile(x, cos, sin, out, back=back)
    else:
        for tile in tiles_of(x):
            _rotate_tile(x[tile], cos[tile], sin[tile], out[tile], back=back)
    return out


def _rotate_tile(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, back: bool) -> None:
    torch.mul(x, cos, out=out)
    by_first, by_second = (x * sin).chunk(2, dim=-1)
    first, second = out.chunk(2, dim=-1)
    # Not addcmul, which may round once where transformers rounds twice.
    if back:
        first.add_(by_second)
        second.sub_(by_first)
    else:
        first.sub_(by_second)
        second.add_(by_first)
