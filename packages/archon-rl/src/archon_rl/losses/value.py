"""The value loss of a critic, and how much of the returns its values explain.

With the value V of a prediction, its value V_old before the step, and the return R:

- ``l = (V - R)^2 / 2``: the squared error of PPO (arXiv:1707.06347, eq. 9), which does not clip it.
- Clipped: ``l = max((V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2) / 2``, as in OpenAI's baselines (ppo2) and
  AReaL. A value that has moved further than eps from V_old towards R has no gradient.

The factor 1/2 is that of baselines and AReaL; the paper has it in no formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.packed import OutputName
from archon_rl.losses.objective import TermValues

VALUES = "values"
"""Token field [T]: the critic's values before the step. The value at a prediction is that of the tokens before it."""
RETURNS = "returns"
"""Token field [T]: what the critic learns to predict."""


@dataclass(frozen=True)
class ValueTerm:
    """The squared error of values; implements ``losses.objective.TokenTerm``.

    Attributes:
        eps_clip: largest change of a value within a step that still lowers the loss; ``None`` for no clipping.
    """

    eps_clip: float | None = None
    name: str = "value_loss"
    outputs: tuple[OutputName, ...] = ("values",)

    @property
    def fields(self) -> frozenset[str]:
        return frozenset({VALUES, RETURNS})

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: Batch) -> TermValues:
        values, old, returns = outputs["values"], micro_batch.token_fields[VALUES], micro_batch.token_fields[RETURNS]
        losses = (values - returns).square() / 2
        metrics = {"values": values.detach(), "returns": returns}
        if self.eps_clip is not None:
            change = values.detach() - old
            near = old + change.clamp(-self.eps_clip, self.eps_clip)
            bound = (near - returns).square() / 2
            # Beyond the range, the clipped error is constant. Within it both errors are the same number, but rounding
            # may make either the larger one, and the token would have no gradient.
            clipped = (change.abs() > self.eps_clip) & (bound > losses.detach())
            losses = torch.where(clipped, bound, losses)
            metrics["value_clip_fraction"] = clipped.to(values.dtype)
        return TermValues(losses, metrics)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the tokens of ``mask``; 0 if the returns do not vary.

    1 for perfect values, 0 for values no better than a constant, negative for worse ones. Computed in float64.

    Args:
        values: [T], before the update.
        returns: [T].
        mask: bool [T].
    """
    x, y = values[mask].double(), returns[mask].double()
    if len(y) < 2:
        return 0.0
    spread, scale = y.var(correction=0), y.square().mean()
    # The variance of equal returns is not exactly 0 when they were computed in different orders.
    if spread <= 1e-12 * scale:
        return 0.0
    return float(1 - (y - x).var(correction=0) / spread)
