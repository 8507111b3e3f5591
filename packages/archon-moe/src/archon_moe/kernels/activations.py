"""The gated activation between the projections of an expert, and its derivative.

``activate(gate) * factor(up)``: without a clamp, an activation of transformers and ``up`` itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from archon_core.contracts.moe import ClampedGate
from archon_engine.nn.swiglu import activation


@dataclass(frozen=True)
class Gating:
    """The product of both projections of an expert.

    Attributes:
        hidden_act: activation by its ``transformers`` name; not read with ``clamp``.
        clamp: limits of both projections; ``None`` without.
    """

    hidden_act: str = "silu"
    clamp: ClampedGate | None = None

    def activate(self, gate: Tensor) -> Tensor:
        """The activation of ``gate``, in its dtype."""
        if self.clamp is not None:
            clamped = gate.clamp(max=self.clamp.limit)
            return clamped * torch.sigmoid(self.clamp.alpha * clamped)
        return torch.nn.functional.silu(gate) if self.hidden_act == "silu" else activation(self.hidden_act)(gate)

    def activate_backward(self, grad: Tensor, gate: Tensor) -> Tensor:
        """The gradient of ``gate``, given the gradient of its activation."""
        if self.clamp is not None:
            alpha, limit = self.clamp.alpha, self.clamp.limit
            scaled = gate.clamp(max=limit).mul_(alpha)
            sigmoid = torch.sigmoid(scaled)
            # sigmoid(s) (1 + s (1 - sigmoid(s))), in memory of the clamped gate.
            slope = scaled.mul_(1 - sigmoid).add_(1).mul_(sigmoid)
            return slope.mul_(grad).masked_fill_(gate > limit, 0)
        if self.hidden_act == "silu":
            return torch.ops.aten.silu_backward(grad, gate)
        # Any other activation of transformers: differentiated by autograd, which is off inside an autograd.Function's
        # backward.
        with torch.enable_grad():
            leaf = gate.detach().requires_grad_()
            return torch.autograd.grad(activation(self.hidden_act)(leaf), leaf, grad)[0]

    def factor(self, up: Tensor) -> Tensor:
        """The factor of the activation."""
        return up if self.clamp is None else up.clamp(-self.clamp.limit, self.clamp.limit) + 1

    def factor_backward_(self, grad: Tensor, up: Tensor) -> Tensor:
        """The gradient of ``up``, given the gradient of the factor, which is changed in place."""
        return grad if self.clamp is None else grad.masked_fill_(up.abs() > self.clamp.limit, 0)
