"""The global gradient norm: every logical element of every parameter counted once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def global_gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm over all gradients, a scalar in at least fp32. Parameters without a gradient count as zero."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norms = [
        torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
        for gradient in gradients
    ]
    return torch.linalg.vector_norm(torch.stack(norms))


def clip_gradients(parameters: Iterable[nn.Parameter], norm: Tensor, max_norm: float) -> None:
    """Scale all gradients in place so that their global norm, which is ``norm`` now, is at most ``max_norm``."""
    if norm <= max_norm:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_((max_norm / norm).to(parameter.grad.dtype))
