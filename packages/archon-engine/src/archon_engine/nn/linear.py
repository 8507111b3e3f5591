"""A linear projection."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from archon_engine.nn.tensor_parallel import local_weight


class Linear(nn.Module):
    """``x @ weight.T + bias``. Parameters are left uninitialised: a checkpoint or ``initialize_weights`` fills them.

    Attributes:
        weight: [out_features, in_features].
        bias: [out_features], or ``None``.
        adds_bias: false on all but one of the tensor ranks whose outputs are summed, so that the bias is added once.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.adds_bias = True

    def forward(self, x: Tensor) -> Tensor:
        """Project ``x`` [..., in_features] to [..., out_features]."""
        bias = None if self.bias is None else local_weight(self.bias)
        if bias is not None and not self.adds_bias:
            bias = bias * 0.0  # not None: every rank must contribute a gradient, here zero, to the sum over ranks
        return functional.linear(x, local_weight(self.weight), bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]} -> {self.weight.shape[0]}, bias={self.bias is not None}"
