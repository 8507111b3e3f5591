"""No dispatch: every expert is here."""

from __future__ import annotations

from torch import Tensor

from archon_moe.dispatch.interface import Rows


class NoDispatch:
    """Tokens stay where they are."""

    def dispatch(self, x: Tensor, experts: Tensor, weights: Tensor) -> tuple[Rows, None]:
        return Rows(x, experts, weights, experts.numel()), None

    def combine(self, y: Tensor, plan: None) -> Tensor:
        return y
