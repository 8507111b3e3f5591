"""Clip-Cov and KL-Cov (arXiv:2505.22617): spare the few tokens that make entropy collapse.

The entropy falls with the covariance of log-probabilities and advantages, to which a token contributes

    cov_t = (log pi(y_t) - mean log pi) (A_t - mean A)    (eq. 10),

with means over all trained tokens of the batch. A share of the tokens is treated apart:

- Clip-Cov (eq. 11 and 12): tokens with cov_t between two bounds leave the loss, at most ``ratio`` of all tokens. The
  paper draws them at random, its authors' code among the tokens that PPO does not clip; here the tokens with the
  largest cov_t leave, without a draw.
- KL-Cov (eq. 13 and 14): the ``ratio`` of all tokens with the largest cov_t get a KL penalty:
  ``l = -r A + coef KL(pi_prox || pi)``, and ``l = -r A`` for the others. The KL is estimated by k3, r - 1 - log r,
  whose gradient is the KL's for samples of pi_prox. The authors' code takes |log r|, whose gradient jumps at r = 1,
  where an update begins: rounding would decide its sign.

The paper's values (section 4.3): ``ratio`` 2e-4 and bounds 1 and 5 in Clip-Cov; ``ratio`` 2e-3 for a model of 7 billion
parameters, 2e-4 for 32, and ``coef`` 1 in KL-Cov.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.packed import OutputName
from archon_rl.losses.aggregation import LOSS_MASK
from archon_rl.losses.policy import clipped_term
from archon_rl.losses.policy_term import ADVANTAGES, PolicyInputs, PolicyLoss, PolicyTerm
from archon_rl.losses.whole_batch import positions_of_largest

COV_KEPT = "cov_kept"
"""Token field, bool [T]: tokens that Clip-Cov leaves in the loss."""
COV_PENALISED = "cov_penalised"
"""Token field, bool [T]: tokens that KL-Cov penalises."""

ROUNDING = 1e-6
"""Error of log-probabilities and advantages in float32 from the order of sums; relative for values above 1. Where a KL
penalty is the whole advantage, as with equal rewards, it starts as rounding alone: the reference is the policy."""


@dataclass(frozen=True)
class ClipCovMask:
    """Keeps all but the tokens that Clip-Cov clips; implements ``losses.whole_batch.WholeBatchMask``.

    Attributes:
        ratio: largest share of clipped tokens; at least one token is clipped if any is within the bounds.
        lower: smallest covariance of a clipped token.
        upper: largest covariance of a clipped token.
    """

    ratio: float = 2e-4
    lower: float = 1.0
    upper: float = 5.0
    field: str = COV_KEPT
    outputs: tuple[OutputName, ...] = ("logprobs",)
    fields: frozenset[str] = frozenset({ADVANTAGES})

    def __call__(self, outputs: Mapping[OutputName, Tensor], batch: Batch) -> Tensor:
        covariance, mask = covariances(outputs["logprobs"], batch), batch.token_fields[LOSS_MASK]
        within = mask & (covariance >= self.lower) & (covariance <= self.upper)
        return ~positions_of_largest(covariance, within, n_of(self.ratio, mask))


@dataclass(frozen=True)
class KLCovMask:
    """Chooses the tokens that KL-Cov penalises; implements ``losses.whole_batch.WholeBatchMask``.

    Attributes:
        ratio: share of penalised tokens; at least one token is penalised.
    """

    ratio: float = 2e-4
    field: str = COV_PENALISED
    outputs: tuple[OutputName, ...] = ("logprobs",)
    fields: frozenset[str] = frozenset({ADVANTAGES})

    def __call__(self, outputs: Mapping[OutputName, Tensor], batch: Batch) -> Tensor:
        covariance, mask = covariances(outputs["logprobs"], batch), batch.token_fields[LOSS_MASK]
        return positions_of_largest(covariance, mask, n_of(self.ratio, mask))


@dataclass(frozen=True, kw_only=True)
class KLCovTerm(PolicyTerm):
    """KL-Cov's policy loss.

    Attributes:
        kl_coef: weight of the KL at the penalised tokens.
    """

    needs_advantage: ClassVar[bool] = False

    kl_coef: float = 0.1

    @property
    def fields(self) -> frozenset[str]:
        return super().fields | {COV_PENALISED}

    def token_losses(self, inputs: PolicyInputs) -> tuple[Tensor, dict[str, Tensor]]:
        penalised = inputs.batch.token_fields[COV_PENALISED]
        far = torch.where(penalised, inputs.log_ratio, 0)
        kl = torch.expm1(far) - far
        ratio = torch.where(inputs.advantages == 0, 0, inputs.log_ratio).exp()
        losses = self.kl_coef * kl - ratio * inputs.advantages
        return losses, {"cov_penalised_fraction": penalised.to(kl.dtype)}


def covariances(logprobs: Tensor, batch: Batch) -> Tensor:
    """cov_t, float64 [T]; 0 outside the loss mask, and where rounding alone separates a value from the mean: layouts
    round differently, and would choose other tokens."""
    mask = batch.token_fields[LOSS_MASK]
    n_trained = mask.sum().clamp(min=1)

    def centred(values: Tensor) -> Tensor:
        inside = torch.where(mask, values.double(), 0)
        deviations = inside - inside.sum() / n_trained
        return torch.where(mask & (deviations.abs() > ROUNDING * inside.abs().max().clamp(min=1)), deviations, 0)

    return centred(logprobs) * centred(batch.token_fields[ADVANTAGES])


def n_of(ratio: float, mask: Tensor) -> int:
    """A share of the tokens in ``mask``, rounded down, at least 1."""
    return max(1, int(ratio * int(mask.sum())))


def build_clip_cov(options: Any, shared: Mapping[str, Any]) -> PolicyLoss:
    """The ``PolicyLossFactory`` of ``clip_cov``: the clipped loss without the tokens of the mask."""
    mask = ClipCovMask(options.clip_cov_ratio, options.clip_cov_lower, options.clip_cov_upper)
    term = clipped_term(options, {**shared, "masks": (*shared["masks"], mask.field)})
    return PolicyLoss(term, (mask,))


def build_kl_cov(options: Any, shared: Mapping[str, Any]) -> PolicyLoss:
    """The ``PolicyLossFactory`` of ``kl_cov``."""
    return PolicyLoss(KLCovTerm(kl_coef=options.kl_cov_coef, **shared), (KLCovMask(options.kl_cov_ratio),))
