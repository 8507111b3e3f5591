"""The weights of grouped experts, as one argument of their implementations.

Legend: E experts, H hidden size, F intermediate size.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ExpertWeights(NamedTuple):
    """The weights of stacked experts, or their gradients.

    Attributes:
        gate: [E, F, H].
        up: [E, F, H].
        down: [E, H, F].
        gate_bias: [E, F]; the biases are ``None`` for experts without.
        up_bias: [E, F].
        down_bias: [E, H].
    """

    gate: Tensor
    up: Tensor
    down: Tensor
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None

    @property
    def biases(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """The gate, up and down biases; ``None`` for experts without."""
        if self.gate_bias is None or self.up_bias is None or self.down_bias is None:
            return None
        return self.gate_bias, self.up_bias, self.down_bias
