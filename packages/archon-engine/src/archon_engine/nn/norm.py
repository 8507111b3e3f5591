"""Normalisation: root mean square (Zhang and Sennrich, 2019) in the forms that models use, and LayerNorm (Ba, 2016).

All compute in at least fp32. Norms that agree in fp32 may round at different places in 16-bit types. Each norm here
rounds where its counterpart in transformers does, so that both agree bit for bit in every type up to fp32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from archon_core.contracts.module import InitialValue
from archon_engine.nn.rms_norm import rms_norm
from archon_engine.nn.tensor_parallel import TensorParallel, local_weight


class RMSNorm(nn.Module):
    """``weight * x / sqrt(mean(x^2) + eps)`` over the last dim.

    Attributes:
        weight: [size].
        eps: added to the mean square.
        offset: added to the weight: 1 in Gemma, whose weights start at 0.
        rounds_first: whether the normalised values are rounded to the type of ``x`` before they are scaled, as in
            Llama, or after, as in Gemma and OLMo 2.
    """

    def __init__(self, size: int, eps: float, *, offset: float = 0.0, rounds_first: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), 1.0 - offset))
        self.eps = eps
        self.offset = offset
        self.rounds_first = rounds_first
        if offset == 1.0:
            self.initial_values: Mapping[str, InitialValue] = {"weight": "zeros"}

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [..., size]."""
        weight = local_weight(self.weight)
        # Compiled graphs fuse the formula below, which also serves rows over several ranks and mixed types.
        if self.is_row_wise and weight.dtype == x.dtype and not torch.compiler.is_compiling():
            return rms_norm(x, weight, self.eps, offset=self.offset, rounds_first=self.rounds_first)
        upcast = x.to(torch.promote_types(x.dtype, torch.float32))
        normalised = upcast * torch.rsqrt(self.mean_square(upcast) + self.eps)
        if self.rounds_first:
            return (weight + self.offset if self.offset else weight) * normalised.to(x.dtype)
        return ((weight.to(upcast.dtype) + self.offset) * normalised).to(x.dtype)

    @property
    def is_row_wise(self) -> bool:
        """Whether ``mean_square`` reads nothing but this rank's row, as ``rms_norm`` assumes."""
        return True

    def mean_square(self, x: Tensor) -> Tensor:
        """``mean(x^2)`` over the last dim: [..., 1]."""
        return x.pow(2).mean(-1, keepdim=True)

    def extra_repr(self) -> str:
        offset = f", offset={self.offset:g}" if self.offset else ""
        return f"{self.weight.shape[0]}, eps={self.eps}{offset}"


class ProjectionRMSNorm(RMSNorm):
    """``RMSNorm`` over all heads of a projection at once, as OLMo 2 normalises queries and keys.

    Under tensor parallelism a rank holds part of the projection and the same part of the weight (role ``column``), and
    the ranks sum their squares.

    Attributes:
        size: number of features on all tensor ranks together.
        parallel: the tensor ranks, which hold other heads; ``None`` without tensor parallelism.
    """

    def __init__(self, size: int, eps: float, *, offset: float = 0.0, rounds_first: bool = True) -> None:
        super().__init__(size, eps, offset=offset, rounds_first=rounds_first)
        self.size = size
        self.parallel: TensorParallel | None = None

    @property
    def is_row_wise(self) -> bool:
        return self.parallel is None

    def mean_square(self, x: Tensor) -> Tensor:
        if self.parallel is None:
            return super().mean_square(x)
        return self.parallel.sum_over_ranks(x.pow(2).sum(-1, keepdim=True)) / self.size


class LayerNorm(nn.Module):
    """``weight * (x - mean(x)) / sqrt(var(x) + eps) + bias`` over the last dim.

    Attributes:
        weight: [size].
        bias: [size], or ``None``.
        eps: added to the variance.
    """

    def __init__(self, size: int, eps: float, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [..., size]."""
        bias = None if self.bias is None else local_weight(self.bias)
        weight = local_weight(self.weight)
        return nn.functional.layer_norm(x, weight.shape, weight, bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}, bias={self.bias is not None}"
