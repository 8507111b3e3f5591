"""M2PO's mask (arXiv:2510.01161): a trust region on the second moment of the log-ratios of a whole batch.

With m_t = (log pi(y_t) - log pi_behave(y_t))^2, the tokens with the largest m_t are masked, as few as possible, so that
the mean of the others is at most a threshold. The masked policy loss is ``l = -M r A`` without clipping, divided by the
number of all tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.packed import OutputName
from archon_rl.losses.aggregation import LOSS_MASK
from archon_rl.losses.policy_term import LOGPROBS

M2_KEPT = "m2_kept"
"""Token field, bool [T]: tokens inside the trust region."""


@dataclass(frozen=True)
class SecondMomentMask:
    """Keeps the tokens inside M2PO's trust region; implements ``losses.whole_batch.WholeBatchMask``.

    Attributes:
        threshold: largest mean of the squared log-ratios of the tokens that are kept.
    """

    threshold: float
    field: str = M2_KEPT
    outputs: tuple[OutputName, ...] = ("logprobs",)
    fields: frozenset[str] = frozenset({LOGPROBS})

    def __call__(self, outputs: Mapping[OutputName, Tensor], batch: Batch) -> Tensor:
        mask = batch.token_fields[LOSS_MASK]
        places = mask.nonzero()[:, 0]
        log_ratio = outputs["logprobs"].double()[places] - batch.token_fields[LOGPROBS].double()[places]
        moments, order = log_ratio.square().sort(stable=True)
        means = moments.cumsum(0) / torch.arange(1, len(moments) + 1, dtype=torch.float64, device=moments.device)
        # Means of ever larger values grow, so the tokens that are kept come first.
        n_kept = int((means <= self.threshold).sum())
        kept = torch.zeros_like(mask)
        kept[places[order[:n_kept]]] = True
        return kept
