"""Estimators of KL(policy || reference) from samples of the policy, and the KL term of a loss.

With x = log pi(y) - log pi_ref(y) for a sample y ~ pi (Schulman, "Approximating KL Divergence", 2020,
http://joschu.net/blog/kl-approx.html):

- ``k1`` = x: unbiased, high variance, negative for half of the samples.
- ``k2`` = x^2 / 2: biased, low variance.
- ``k3`` = exp(-x) - 1 + x: unbiased, low variance, never negative. GRPO's loss uses it (arXiv:2402.03300, eq. 4).

An unbiased estimate of the KL need not have an unbiased gradient: the gradient of a loss term treats the samples as
constants and ignores that the policy drew them. With the score s = grad log pi(y), so that
grad x = s, E[s] = 0 and E[f(y) s] = sum_y f(y) grad pi(y), the expected gradients over y ~ pi are

- ``k1``: E[s] = 0. The term does not regularise; ``k1`` works only as a penalty inside the reward.
- ``k2``: E[x s] = sum_y x grad pi(y) = grad KL(pi || pi_ref).
- ``k3``: E[(1 - exp(-x)) s] = -sum_y pi_ref(y) grad log pi(y) = grad KL(pi_ref || pi), the KL with its arguments
  exchanged. Both agree to first order where pi = pi_ref. (The literature calls KL(pi || pi_ref) the reverse KL and
  KL(pi_ref || pi) the forward KL.)

This holds for samples of the current policy: exactly for the first update after a rollout, approximately for later
ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.packed import OutputName
from archon_rl.losses.objective import TermValues

KLEstimator = Literal["k1", "k2", "k3"]
REF_LOGPROBS = "ref_logprobs"
"""Token field [T]: log-probabilities of the sampled tokens under the reference."""


def kl_estimate(logprobs: Tensor, reference: Tensor, estimator: KLEstimator) -> Tensor:
    """Per-sample estimate of KL(policy || reference), the shape of its arguments, for samples of the policy."""
    x = logprobs - reference
    match estimator:
        case "k1":
            return x
        case "k2":
            return x.square() / 2
        case "k3":
            # expm1 keeps the digits near x = 0, where exp(-x) - 1 + x cancels.
            return torch.expm1(-x) + x
    raise AssertionError(f"unknown KL estimator {estimator!r}")


@dataclass(frozen=True)
class KLTerm:
    """``coefficient`` times the KL to the reference, estimated per token.

    Attributes:
        coefficient: weight in the loss.
        estimator: which KL the gradient descends depends on it; see the module's docstring.
    """

    coefficient: float
    estimator: KLEstimator = "k3"
    name: str = "kl_loss"
    outputs: tuple[OutputName, ...] = ("logprobs",)
    fields: frozenset[str] = frozenset({REF_LOGPROBS})

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: Batch) -> TermValues:
        kl = kl_estimate(outputs["logprobs"], micro_batch.token_fields[REF_LOGPROBS], self.estimator)
        return TermValues(self.coefficient * kl, metrics={"kl_ref": kl.detach()})
