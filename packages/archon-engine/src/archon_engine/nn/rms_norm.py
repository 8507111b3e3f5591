"""RMSNorm as an autograd function, tile by tile.

Autograd would record seven operations, save two copies of the input, and walk over memory some twenty times. Here
forward saves the input, which the residual stream holds anyway, and one number per row.

With y = (w + offset) x r and r = 1 / sqrt(mean(x^2) + eps), for a gradient g of y:

    dx = r g (w + offset) - x r^3 mean(g (w + offset) x)
    dw = sum over rows of g x r

Legend: N rows, C rows of a tile, F features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from archon_engine.compat import wanted_gradients
from archon_engine.nn.tiles import is_one_tile, tiles_of


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, offset: float, rounds_first: bool) -> Tensor:
    """Normalise ``x`` [..., F] and scale it by ``weight`` [F], of the same dtype. See ``archon_engine.nn.norm``."""
    if not torch.is_grad_enabled():
        # A decode step has a few rows and hundreds of norms: what is around the arithmetic would take most of the time.
        if x.device.type == "cpu" and is_one_tile(x) and not offset and x.dtype in (torch.float32, torch.float64):
            return functional.rms_norm(x, weight.shape, weight, eps)  # the same operations, called once from Python
        return _normalise(x, weight, eps, offset, rounds_first)[0]
    # Views, because compat.wanted_gradients cannot tell for a leaf whether its gradient is wanted.
    return _RMSNorm.apply(x.view_as(x), weight.view_as(weight), eps, offset, rounds_first)


def _normalise(x: Tensor, weight: Tensor, eps: float, offset: float, rounds_first: bool) -> tuple[Tensor, Tensor]:
    """The result, and r [N, 1], in at least fp32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    factor_F = _factor(weight, offset, weight.dtype if rounds_first else wide)
    if x.dtype == wide and is_one_tile(x):
        root = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        return (x * root).mul_(factor_F), root.view(-1, 1)
    x_NF = x.reshape(-1, x.shape[-1])
    # The result is no view: FSDP2 hooks outputs of the final norm, and warns about views.
    y = x.new_empty(x.shape)
    y_NF = y.view(x_NF.shape)
    root_N1 = x_NF.new_empty(x_NF.shape[0], 1, dtype=wide)
    for tile in tiles_of(x_NF):
        x_CF, y_CF, root_C1 = x_NF[tile].to(wide), y_NF[tile], root_N1[tile]
        torch.mean(x_CF.square(), -1, keepdim=True, out=root_C1)
        root_C1.add_(eps).rsqrt_()
        if rounds_first:
            # Writing to y_CF rounds to its dtype.
            torch.mul(x_CF, root_C1, out=y_CF).mul_(factor_F)
        else:
            torch.mul(x_CF * root_C1, factor_F, out=y_CF)
    return y, root_N1


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float, rounds_first: bool) -> Tensor:
        y, root_N1 = _normalise(x, weight, eps, offset, rounds_first)
        ctx.save_for_backward(x, weight, root_N1)
        ctx.offset = offset
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, root_N1 = ctx.saved_tensors
        wide = root_N1.dtype
        x_NF, grad_NF = x.reshape(-1, x.shape[-1]), grad.reshape(-1, x.shape[-1])
        # Each half of a split backward pass computes its own gradient only.
        needs_x, needs_weight = wanted_gradients(ctx)[:2]
        grad_x_NF = torch.empty_like(x_NF) if needs_x else None
        # Summed in at least fp32, whatever the number of rows.
        grad_weight_F = weight.new_zeros(weight.shape, dtype=wide) if needs_weight else None
        factor_F = _factor(weight, ctx.offset, wide)
        for tile in tiles_of(x_NF):
            x_CF, grad_CF, root_C1 = x_NF[tile].to(wide), grad_NF[tile].to(wide), root_N1[tile]
            product_CF = grad_CF * x_CF
            if grad_weight_F is not None:
                grad_weight_F.addmv_(product_CF.T, root_C1[:, 0])
            if grad_x_NF is not None:
                mean_C1 = torch.mv(product_CF, factor_F)[:, None] / x_CF.shape[1]
                # The product is not needed any more, so its memory takes the result.
                scaled_CF = torch.mul(grad_CF, factor_F, out=product_CF).mul_(root_C1)
                torch.addcmul(scaled_CF, x_CF, mean_C1.mul_(root_C1.pow(3)), value=-1, out=grad_x_NF[tile])
        return (
            None if grad_x_NF is None else grad_x_NF.view(x.shape),
            None if grad_weight_F is None else grad_weight_F.to(weight.dtype),
            None,
            None,
            None,
        )


def _factor(weight: Tensor, offset: float, dtype: torch.dtype) -> Tensor:
    factor = weight.to(dtype)
    return factor + offset if offset else factor
