"""Keys and values along the paths of packs that share prefixes (``archon_core.contracts.packed.SharedPrefixes``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather_paths(x: Tensor, key_tokens: Tensor) -> Tensor:
    """The rows ``key_tokens`` of ``x`` [T, ...]. Backward sums the gradients of a row that several paths share.

    The sum is in at least fp32: in 16 bits, each of many samples would round what the others added.
    """
    return _GatherPaths.apply(x, key_tokens)


class _GatherPaths(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, key_tokens: Tensor) -> Tensor:
        ctx.save_for_backward(key_tokens)
        ctx.n_rows = x.shape[0]
        return x.index_select(0, key_tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        [key_tokens] = ctx.saved_tensors
        total = grad.new_zeros(ctx.n_rows, *grad.shape[1:], dtype=torch.promote_types(grad.dtype, torch.float32))
        return total.index_add_(0, key_tokens, grad.to(total.dtype)).to(grad.dtype), None
