"""The clipped policy loss, with the asymmetric, dual-clip and sequence-level variants.

With the ratio r = pi / pi_prox and the advantage A:

- PPO (arXiv:1707.06347, eq. 7): ``l = max(-r A, -clip(r, 1 - eps, 1 + eps) A)``, r per token.
- Asymmetric bounds, "clip higher" (DAPO, arXiv:2503.14476, eq. 10): the upper bound is ``1 + eps_higher``.
- Dual clip (arXiv:1912.09729, eq. 5): for A < 0, ``l = min(l, -c A)``, so that a large ratio cannot dominate.
- GSPO (arXiv:2507.18071, eq. 5 and 7), level ``sequence``: r is the geometric mean of the sequence's token ratios,
  ``r = exp(1 / |o| sum_t (log pi - log pi_prox))``, and clips whole sequences.
- Without clipping: ``l = -r A``, the loss of M2PO (arXiv:2510.01161, eq. 5) beside its mask.

The decoupled form and its weight are in ``losses.behaviour``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from archon_rl.losses.policy_term import PolicyInputs, PolicyLoss, PolicyTerm
from archon_rl.option_checks import is_unclipped


@dataclass(frozen=True, kw_only=True)
class ClippedPolicyTerm(PolicyTerm):
    """The clipped surrogate.

    Attributes:
        eps_clip: distance of the lower bound from 1; ``None`` for no clipping at all.
        eps_clip_higher: distance of the upper bound from 1; ``None`` for the same.
        c_clip: bound of the dual clip, above 1; ``None`` for none.
    """

    eps_clip: float | None = 0.2
    eps_clip_higher: float | None = None
    c_clip: float | None = None

    def token_losses(self, inputs: PolicyInputs) -> tuple[Tensor, dict[str, Tensor]]:
        advantages, ratio = inputs.advantages, inputs.log_ratio.detach().exp()
        constant, bound = torch.zeros_like(ratio, dtype=torch.bool), ratio
        if self.eps_clip is not None:
            lower = 1 - self.eps_clip
            upper = 1 + (self.eps_clip if self.eps_clip_higher is None else self.eps_clip_higher)
            constant = ((advantages > 0) & (ratio > upper)) | ((advantages < 0) & (ratio < lower))
            bound = ratio.clamp(lower, upper)
        metrics = {"clip_fraction": constant.to(ratio.dtype)}
        if self.c_clip is not None:
            dual = (advantages < 0) & (ratio > self.c_clip)
            bound = torch.where(dual, self.c_clip, bound)
            constant = constant | dual
            metrics["dual_clip_fraction"] = dual.to(ratio.dtype)
        # A token whose loss is constant must not pass through exp: where the ratio overflows, its zero gradient would
        # become 0 * inf = NaN.
        changing = torch.where(constant, 0, inputs.log_ratio).exp()
        return -torch.where(constant, bound, changing) * advantages, metrics


def build_clip(options: Any, shared: Mapping[str, Any]) -> PolicyLoss:
    """The ``PolicyLossFactory`` of ``clip``."""
    return PolicyLoss(clipped_term(options, shared))


def clipped_term(options: Any, shared: Mapping[str, Any]) -> ClippedPolicyTerm:
    """The clipped loss that ``actor`` asks for; unclipped for M2PO without a bound."""
    return ClippedPolicyTerm(
        eps_clip=None if is_unclipped(options) else options.eps_clip,
        eps_clip_higher=options.eps_clip_higher,
        c_clip=options.c_clip,
        **shared,
    )
