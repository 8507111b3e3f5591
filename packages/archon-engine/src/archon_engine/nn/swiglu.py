"""The gated feed-forward block (Shazeer, 2020); SwiGLU when its activation is SiLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from archon_core.errors import ModelError, did_you_mean
from archon_engine.nn.gated_silu import gated_silu
from archon_engine.nn.linear import Linear


def activation(name: str) -> nn.Module:
    """The activation of ``transformers`` with this name (``hidden_act``).

    Raises:
        ModelError: ``transformers`` has no such activation.
    """
    if name == "silu":
        # The module below brings transformers' generation and torch._dynamo: a second or two of start-up, for a name.
        return nn.SiLU()
    from transformers.activations import ACT2FN

    if name not in ACT2FN:
        raise ModelError(
            f"hidden_act: found {name!r}, which transformers does not have{did_you_mean(name, list(ACT2FN))}; "
            f"allowed are {', '.join(sorted(ACT2FN))}"
        )
    return ACT2FN[name]


class SwiGLU(nn.Module):
    """``down(activation(gate(x)) * up(x))``."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, hidden_act: str = "silu", *, bias: bool = False
    ) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size, bias=bias)
        self.up_proj = Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=bias)
        self.activation = activation(hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [..., hidden_size] to the same shape."""
        if type(self.activation) is not nn.SiLU or torch.compiler.is_compiling():
            # Compiled graphs fuse the plain formula.
            return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        if torch.is_grad_enabled():
            return self.down_proj(gated_silu(self.gate_proj(x), self.up_proj(x)))
        # SiLU returns a new tensor, which nothing else reads here: the product takes its memory.
        activated = self.activation(self.gate_proj(x))
        return self.down_proj(activated.mul_(self.up_proj(x)))
