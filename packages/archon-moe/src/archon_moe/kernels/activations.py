"""The activation between an expert's projections, and its derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from archon_engine.nn.swiglu import activation


def activate(gate: Tensor, name: str) -> Tensor:
    """``name``'s activation of ``gate``, in its type."""
    return torch.nn.functional.silu(gate) if name == "silu" else activation(name)(gate)


def activate_backward(grad: Tensor, gate: Tensor, name: str) -> Tensor:
    """The gradient of ``gate`` from that of its activation."""
    if name == "silu":
        return torch.ops.aten.silu_backward(grad, gate)
    with torch.enable_grad():
        leaf = gate.detach().requires_grad_()
        return torch.autograd.grad(activation(name)(leaf), leaf, grad)[0]
