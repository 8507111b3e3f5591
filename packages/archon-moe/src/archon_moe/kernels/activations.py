"""The activation between the projections of an expert, and its derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from archon_engine.nn.swiglu import activation


def activate(gate: Tensor, name: str) -> Tensor:
    """Apply the activation ``name`` (a ``transformers`` name) to ``gate``, in its dtype."""
    return torch.nn.functional.silu(gate) if name == "silu" else activation(name)(gate)


def activate_backward(grad: Tensor, gate: Tensor, name: str) -> Tensor:
    """The gradient of ``gate``, given the gradient of its activation."""
    if name == "silu":
        return torch.ops.aten.silu_backward(grad, gate)
    # Any other activation of transformers: differentiated by autograd, which is off inside an autograd.Function's
    # backward.
    with torch.enable_grad():
        leaf = gate.detach().requires_grad_()
        return torch.autograd.grad(activation(name)(leaf), leaf, grad)[0]
