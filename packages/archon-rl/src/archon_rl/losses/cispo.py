"""CISPO (MiniMax-M1, arXiv:2506.13585, eq. 4 and 5): clips the importance weight instead of the loss.

Per token, ``l = -sg(clip(r, 1 - eps, 1 + eps_higher)) A log pi``, where sg stops the gradient. A token beyond the
bounds keeps its gradient, with a limited weight. The paper has no lower bound, eps = 1, and gives no value of
eps_higher; 4 is AReaL's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from archon_rl.losses.policy_term import PolicyInputs, PolicyLoss, PolicyTerm


@dataclass(frozen=True, kw_only=True)
class CISPOTerm(PolicyTerm):
    """The policy gradient with a clipped importance weight.

    Attributes:
        eps_clip: distance of the lower bound from 1; 1 for no lower bound.
        eps_clip_higher: distance of the upper bound from 1.
    """

    eps_clip: float = 1.0
    eps_clip_higher: float = 4.0

    def token_losses(self, inputs: PolicyInputs) -> tuple[Tensor, dict[str, Tensor]]:
        ratio = inputs.log_ratio.detach().exp()
        weight = ratio.clamp(1 - self.eps_clip, 1 + self.eps_clip_higher)
        return -weight * inputs.advantages * inputs.logprobs, {"clip_fraction": (weight != ratio).to(ratio.dtype)}


def build_cispo(options: Any, shared: Mapping[str, Any]) -> PolicyLoss:
    """The ``PolicyLossFactory`` of ``cispo``."""
    return PolicyLoss(CISPOTerm(eps_clip=options.eps_clip, eps_clip_higher=options.eps_clip_higher, **shared))
