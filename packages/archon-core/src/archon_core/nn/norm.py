"""Root-mean-square normalisation (Zhang and Sennrich, 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from archon_core.nn.tensor_parallel import local_weight


class RMSNorm(nn.Module):
    """``weight * x / sqrt(mean(x^2) + eps)`` over the last dim.

    Computed in at least fp32; the result is rounded to the type of ``x`` before it is scaled, as Hugging Face's is, so
    that the two agree bit for bit in every type up to fp32.

    Attributes:
        weight: [size].
        eps: added to the mean square.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [..., size]."""
        upcast = x.to(torch.promote_types(x.dtype, torch.float32))
        normalised = upcast * torch.rsqrt(upcast.pow(2).mean(-1, keepdim=True) + self.eps)
        return local_weight(self.weight) * normalised.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"
