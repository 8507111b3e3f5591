"""DPPO (arXiv:2602.04879, eq. 12): masks by the divergence of the policies at a token, not by their ratio.

With p = pi(y_t) and q = pi_behave(y_t), the divergence is that of "this token or another one": the total variation
|p - q| (eq. 13), or the binary KL q log(q / p) + (1 - q) log((1 - q) / (1 - p)) (eq. 14). A token leaves the loss if an
update would drive the policies further apart than a threshold: A > 0, p > q and divergence > high; or A < 0, p < q
and divergence > low. The others have

    l = -r A + kl_coef (log r)^2,    r = p / q,

and masked tokens keep the second term. Both terms, and the thresholds, are the default of prime-rl (its
``dppo_mask_low``, ``dppo_mask_high`` and ``kl_tau``); the paper has the first term alone. Its thresholds are 0.2 for
the total variation, 0.15 with LoRA, and 0.05 for the binary KL (appendix E). In its largest experiments it limits r to
5 (eq. 23), which this loss does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from archon_rl.losses.behaviour import binary_kl
from archon_rl.losses.policy_term import PolicyInputs, PolicyLoss, PolicyTerm


@dataclass(frozen=True, kw_only=True)
class DPPOTerm(PolicyTerm):
    """The policy loss under a mask by divergence.

    Attributes:
        mask_low: threshold for negative advantages.
        mask_high: threshold for positive advantages.
        divergence: total variation (``tv``) or binary KL (``kl``).
        kl_coef: weight of the squared log-ratio.
    """

    needs_advantage: ClassVar[bool] = False

    mask_low: float = 0.2
    mask_high: float = 0.2
    divergence: Literal["tv", "kl"] = "tv"
    kl_coef: float = 1e-3

    def token_losses(self, inputs: PolicyInputs) -> tuple[Tensor, dict[str, Tensor]]:
        current, sampled, advantages = inputs.logprobs.detach(), inputs.sampled, inputs.advantages
        divergence = binary_kl(sampled, current) if self.divergence == "kl" else (current.exp() - sampled.exp()).abs()
        further = torch.where(advantages > 0, current > sampled, current < sampled)
        masked = further & (divergence > inputs.by_sign(self.mask_high, self.mask_low))
        constant = masked | (advantages == 0)
        policy = torch.where(constant, 0, torch.where(constant, 0, inputs.log_ratio).exp() * advantages)
        metrics = {"divergence": divergence, "divergence_masked": masked.to(divergence.dtype)}
        return self.kl_coef * inputs.log_ratio.square() - policy, metrics


def build_dppo(options: Any, shared: Mapping[str, Any]) -> PolicyLoss:
    """The ``PolicyLossFactory`` of ``dppo``."""
    return PolicyLoss(
        DPPOTerm(
            mask_low=options.dppo_mask_low,
            mask_high=options.dppo_mask_high,
            divergence=options.dppo_divergence,
            kl_coef=options.dppo_kl_coef,
            **shared,
        )
    )
