"""M2PO's mask (arXiv:2510.01161, eq. 4, 5 and algorithm 1): a trust region on the second moment of the log-ratios.

With r_t = pi(y_t) / pi_behave(y_t), an update drives a token further from the rollout's policy if A_t > 0 and r_t > 1,
or if A_t < 0 and r_t < 1. Among these tokens of a whole batch, those with the largest m_t = (log r_t)^2 are masked, as
few as possible, so that the mean of m_t over the others of them is at most a threshold. All other tokens stay. The
masked policy loss is ``l = -M r A`` without clipping, divided by the number of all tokens.

Advantages and log-ratios up to 1e-9 count as 0: a group of equal rewards leaves advantages of the size of rounding, and
their signs, which depend on the layout, would decide how many tokens the mean is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.packed import OutputName
from archon_rl.losses.aggregation import LOSS_MASK
from archon_rl.losses.policy_term import ADVANTAGES, LOGPROBS

M2_KEPT = "m2_kept"
"""Token field, bool [T]: tokens that the trust region leaves in the loss."""
ROUNDING = 1e-9
"""Advantages and log-ratios up to this size count as 0."""


@dataclass(frozen=True)
class SecondMomentMask:
    """Keeps the tokens that M2PO leaves in the loss; implements ``losses.whole_batch.WholeBatchMask``.

    Attributes:
        threshold: largest mean of the squared log-ratios of the tokens that are kept and driven further away.
    """

    threshold: float
    field: str = M2_KEPT
    outputs: tuple[OutputName, ...] = ("logprobs",)
    fields: frozenset[str] = frozenset({LOGPROBS, ADVANTAGES})

    def __call__(self, outputs: Mapping[OutputName, Tensor], batch: Batch) -> Tensor:
        advantages = batch.token_fields[ADVANTAGES]
        log_ratio = outputs["logprobs"].double() - batch.token_fields[LOGPROBS].double()
        up = (advantages > ROUNDING) & (log_ratio > ROUNDING)
        down = (advantages < -ROUNDING) & (log_ratio < -ROUNDING)
        places = (batch.token_fields[LOSS_MASK] & (up | down)).nonzero()[:, 0]
        moments, order = log_ratio[places].square().sort(stable=True)
        means = moments.cumsum(0) / torch.arange(1, len(moments) + 1, dtype=torch.float64, device=moments.device)
        # Means of ever larger values grow, so the tokens that are kept come first.
        n_kept = int((means <= self.threshold).sum())
        kept = torch.ones_like(up)
        kept[places[order[n_kept:]]] = False
        return kept
