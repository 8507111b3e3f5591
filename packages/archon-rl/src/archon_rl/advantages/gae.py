"""Generalised advantage estimation (arXiv:1506.02438, eq. 16), per token or per turn, and forms of its lambda.

Over the steps of a sequence, with rewards r, values V, the discount gamma and lambda,

    delta_k = r_k + gamma V_{k+1} - V_k,    A_k = delta_k + gamma lambda A_{k+1}.

A step is a trained token, or a turn: an uninterrupted run of trained tokens. Other tokens are no steps. A turn has the
sum of its tokens' rewards, and the value of its first token, which was predicted before the turn began; all its tokens
have its advantage.

Legend: S sequences, T tokens, N steps of all sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_rl.losses.aggregation import LOSS_MASK

TimestepUnit = Literal["token", "turn"]


class GAELambda(Protocol):
    """Chooses lambda for every sequence by the number of its steps."""

    def __call__(self, n_steps: Tensor) -> Tensor:
        """float64 [S], from 0 to 1, for int64 [S]."""


@dataclass(frozen=True)
class ConstantLambda:
    """One lambda for all sequences."""

    value: float = 1.0

    def __call__(self, n_steps: Tensor) -> Tensor:
        return torch.full_like(n_steps, self.value, dtype=torch.float64)


@dataclass(frozen=True)
class LengthAdaptiveLambda:
    """VAPO's length-adaptive form (arXiv:2504.05118, eq. 4 and 5): lambda = 1 - 1 / (alpha n), at least 0.

    The coefficients lambda^k of the deltas then sum to about alpha n, in proportion to the length n. In the paper this
    is the lambda of the advantages alone; the critic's returns have lambda 1 (section 4.1).

    Attributes:
        alpha: above 0; 0.05 in the paper.
    """

    alpha: float

    def __call__(self, n_steps: Tensor) -> Tensor:
        return (1 - 1 / (self.alpha * n_steps.clamp(min=1).double())).clamp(min=0)


@dataclass(frozen=True)
class RelativePositionLambda:
    """lambda = q^(1 / (n - 1)): with discount 1, the first step keeps the share q of the last step's reward.

    Steps at the same relative position keep the same share in sequences of all lengths. Defined by AReaL, without a
    paper.

    Attributes:
        q: above 0, at most 1.
    """

    q: float

    def __call__(self, n_steps: Tensor) -> Tensor:
        several = n_steps > 1
        exponent = torch.where(several, 1 / (n_steps - 1).clamp(min=1).double(), 0)
        return torch.full_like(exponent, self.q).pow(exponent)


def generalised_advantages(
    batch: Batch,
    rewards: Tensor,
    values: Tensor | None = None,
    *,
    discount: float = 1.0,
    gae_lambda: GAELambda | None = None,
    unit: TimestepUnit = "token",
    last_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns A + V, both [T], 0 outside the loss mask.

    Their dtype is the wider one of rewards and values. Rounded to float32, they would differ between layouts by more
    than the values do.

    Args:
        batch: with its loss mask.
        rewards: [T].
        values: [T]; ``None`` for 0 everywhere.
        discount: gamma.
        gae_lambda: ``None`` for 1.
        unit: what a step is.
        last_values: [S], values after the last step of sequences that did not end there; ``None`` for 0 everywhere.
    """
    mask = batch.token_fields[LOSS_MASK]
    places = mask.nonzero()[:, 0]
    first = _first_tokens(batch) if unit == "turn" else mask
    step_of = first[places].cumsum(0) - 1  # the step of every trained token
    starts = first.nonzero()[:, 0]
    x = rewards.double()
    step_rewards = x.new_zeros(len(starts)).index_add(0, step_of, x[places])
    step_values = torch.zeros_like(step_rewards) if values is None else values.double()[starts]
    n_steps = torch.bincount(batch.sequence_ids[starts], minlength=len(batch))
    last = x.new_zeros(len(batch)) if last_values is None else last_values.double()
    lambdas = (gae_lambda or ConstantLambda())(n_steps)
    advantages = _backwards(step_rewards, step_values, n_steps, discount, lambdas, last)

    dtype = rewards.dtype if values is None else torch.promote_types(rewards.dtype, values.dtype)

    def on_tokens(steps: Tensor) -> Tensor:
        tokens = torch.zeros_like(rewards, dtype=dtype)
        tokens[places] = steps[step_of].to(dtype)
        return tokens

    return on_tokens(advantages), on_tokens(advantages + step_values)


def _first_tokens(batch: Batch) -> Tensor:
    """bool [T]: trained tokens whose predecessor in the sequence is not trained."""
    mask, ids = batch.token_fields[LOSS_MASK], batch.sequence_ids
    continues = torch.zeros_like(mask)
    continues[1:] = mask[:-1] & (ids[1:] == ids[:-1])
    return mask & ~continues


def _backwards(
    rewards: Tensor, values: Tensor, n_steps: Tensor, discount: float, lambdas: Tensor, last_values: Tensor
) -> Tensor:
    """The recurrence over the steps [N] of all sequences, in float64."""
    counts = n_steps.tolist()

    def rows(steps: Tensor) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(steps.split(counts)), batch_first=True)

    r, v = rows(rewards), rows(values)
    result = torch.zeros_like(r)
    later_advantage, later_value = torch.zeros_like(last_values), last_values
    for k in range(r.shape[1] - 1, -1, -1):
        exists = k < n_steps
        delta = r[:, k] + discount * later_value - v[:, k]
        result[:, k] = delta + discount * lambdas * later_advantage
        later_advantage = torch.where(exists, result[:, k], later_advantage)
        later_value = torch.where(exists, v[:, k], later_value)
    return torch.cat([row[:n] for row, n in zip(result, counts, strict=True)])
