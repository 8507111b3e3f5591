"""GMPO (arXiv:2507.20673, eq. 4 and algorithm 1): the geometric mean of clipped token ratios.

Log-ratios are clipped on the side on which clipping acts, c_t = min(log r_t, eps_higher) for A > 0 and
max(log r_t, -eps) for A < 0, and averaged over the sequence's trained tokens:

    l = -exp(1 / |o| sum_t c_t) A.

Every token of a sequence has this loss, so the mean over tokens of a sequence is the paper's. The bounds of a ratio are
e^-eps and e^eps_higher, 0.4 each in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from archon_rl.losses.aggregation import LOSS_MASK
from archon_rl.losses.behaviour import mean_over_sequence
from archon_rl.losses.masking import mask_values
from archon_rl.losses.policy_term import PolicyInputs, PolicyLoss, PolicyTerm


@dataclass(frozen=True, kw_only=True)
class GMPOTerm(PolicyTerm):
    """The geometric-mean policy loss.

    Attributes:
        eps_clip: lower bound of a log-ratio, with the sign changed.
        eps_clip_higher: upper bound of a log-ratio; ``None`` for the same distance.
    """

    eps_clip: float = 0.4
    eps_clip_higher: float | None = None

    def token_losses(self, inputs: PolicyInputs) -> tuple[Tensor, dict[str, Tensor]]:
        higher = self.eps_clip if self.eps_clip_higher is None else self.eps_clip_higher
        log_ratio, advantages = inputs.log_ratio, inputs.advantages
        clipped = torch.where(advantages > 0, log_ratio.clamp(max=higher), log_ratio.clamp(min=-self.eps_clip))
        inside = mask_values(clipped, inputs.batch.token_fields[LOSS_MASK])
        ratio = mean_over_sequence(inside, inputs.batch).exp()
        return -ratio * advantages, {"clip_fraction": (clipped != log_ratio).to(ratio.dtype)}


def build_gmpo(options: Any, shared: Mapping[str, Any]) -> PolicyLoss:
    """The ``PolicyLossFactory`` of ``gmpo``."""
    return PolicyLoss(GMPOTerm(eps_clip=options.eps_clip, eps_clip_higher=options.eps_clip_higher, **shared))
