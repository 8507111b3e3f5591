"""SAPO (arXiv:2511.20347, eq. 5 and 6): a soft gate in place of clipping.

Per token, with the temperature tau = tau_pos for A > 0 and tau_neg otherwise,

    l = -(4 / tau) sigmoid(tau (r - 1)) A.

Its gradient is that of -r A times 4 p (1 - p), p = sigmoid(tau (r - 1)): 1 at r = 1, falling smoothly on both sides.
The paper's temperatures are 1.0 and 1.05 (section 5.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from archon_rl.losses.policy_term import PolicyInputs, PolicyLoss, PolicyTerm

SATURATED = 80.0
"""Log-ratios are limited to this: the gate has no gradient there, and exp would overflow beyond."""


@dataclass(frozen=True, kw_only=True)
class SAPOTerm(PolicyTerm):
    """The sigmoid-gated policy loss.

    Attributes:
        tau_pos: temperature for positive advantages.
        tau_neg: temperature for negative advantages.
    """

    tau_pos: float = 1.0
    tau_neg: float = 1.05

    def token_losses(self, inputs: PolicyInputs) -> tuple[Tensor, dict[str, Tensor]]:
        tau = inputs.by_sign(self.tau_pos, self.tau_neg)
        ratio = inputs.log_ratio.clamp(max=SATURATED).exp()
        gate = torch.sigmoid(tau * (ratio - 1))
        return -4 / tau * gate * inputs.advantages, {"gate": (4 * gate * (1 - gate)).detach()}


def build_sapo(options: Any, shared: Mapping[str, Any]) -> PolicyLoss:
    """The ``PolicyLossFactory`` of ``sapo``."""
    return PolicyLoss(SAPOTerm(tau_pos=options.sapo_tau_pos, tau_neg=options.sapo_tau_neg, **shared))
