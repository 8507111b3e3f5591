"""Advantages from rewards: normalisation over batches and groups, KL penalties, discounted sums.

All functions are pure. ``GroupAdvantages`` composes them for algorithms without a critic: GRPO (arXiv:2402.03300),
Dr.GRPO (arXiv:2503.20783: no deviation), RLOO (arXiv:2402.14740: leave-one-out mean) and their relatives differ only in
its two normalisations.

Legend: S sequences, T tokens, N values, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_rl.losses.aggregation import LOSS_MASK
from archon_rl.losses.kl import REF_LOGPROBS, KLEstimator, kl_estimate
from archon_rl.losses.policy_term import LOGPROBS

Level = Literal["batch", "group"]
REWARDS = "rewards"
"""Sequence field [S]: shaped rewards."""
GROUPS = "group"
"""Sequence field, int64 [S]: index of the prompt that the sequence was sampled for."""


@dataclass(frozen=True)
class Normalisation:
    """``(x - mean) / (std + eps)``, mean and deviation each over the batch, over groups, or left out.

    Attributes:
        mean_level: level of the mean; ``None`` for no centring.
        std_level: level of the standard deviation, taken around that level's mean; ``None`` for no scaling.
        leave_one_out: leave the value itself out of its mean; the mean of no values is 0.
        unbiased: divide by n - 1; a single value has deviation 0.
        eps: added to the deviation.
    """

    mean_level: Level | None = "batch"
    std_level: Level | None = "batch"
    leave_one_out: bool = False
    unbiased: bool = True
    eps: float = 1e-5


def normalise(values: Tensor, groups: Tensor, how: Normalisation, mask: Tensor | None = None) -> Tensor:
    """Normalise ``values`` [N] with group indices ``groups`` (int64 [N]).

    Values outside ``mask`` (bool [N]) do not count in the statistics and become 0. Statistics are computed in float64;
    the result has the dtype of ``values``.
    """
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    ids = {"batch": torch.zeros_like(groups), "group": groups}
    x = torch.where(mask, values, 0).double()
    counted = mask.double()
    result = x
    if how.mean_level is not None:
        result = x - _mean(x, counted, ids[how.mean_level], how.leave_one_out)
    if how.std_level is not None:
        result = result / (_deviation(x, counted, ids[how.std_level], how.unbiased) + how.eps)
    return torch.where(mask, result, 0).to(values.dtype)


def _sum_by(ids: Tensor, values: Tensor) -> Tensor:
    """Each value's group sum, [N]."""
    n_groups = int(ids.max()) + 1 if len(ids) else 0
    return values.new_zeros(n_groups).index_add(0, ids, values)[ids]


def _mean(x: Tensor, counted: Tensor, ids: Tensor, leave_one_out: bool) -> Tensor:
    total, count = _sum_by(ids, x), _sum_by(ids, counted)
    if leave_one_out:
        return (total - x) / (count - counted).clamp(min=1)
    return total / count.clamp(min=1)


def _deviation(x: Tensor, counted: Tensor, ids: Tensor, unbiased: bool) -> Tensor:
    centred = (x - _mean(x, counted, ids, leave_one_out=False)) * counted
    count = _sum_by(ids, counted) - (1 if unbiased else 0)
    return (_sum_by(ids, centred.square()) / count.clamp(min=1)).sqrt()


def discounted_sums(rewards: Tensor, lengths: tuple[int, ...], decay: float) -> Tensor:
    """``A_t = r_t + decay * A_{t+1}`` inside each sequence of the packed ``rewards`` [T].

    This is generalised advantage estimation (arXiv:1506.02438) with all values 0 and decay = discount * lambda.
    """
    rows = torch.nn.utils.rnn.pad_sequence(list(rewards.split(list(lengths))), batch_first=True)
    sums = torch.zeros_like(rows)
    following = rows.new_zeros(len(rows))
    for t in range(rows.shape[1] - 1, -1, -1):
        following = rows[:, t] + decay * following
        sums[:, t] = following
    return torch.cat([row[:length] for row, length in zip(sums, lengths, strict=True)])


def rewards_at_last_token(batch: Batch, rewards: Tensor) -> Tensor:
    """[T]: each sequence's reward ([S]) at its last trained prediction, 0 elsewhere.

    A sequence without a trained prediction drops its reward.
    """
    positions = torch.arange(batch.n_tokens, device=rewards.device)
    trained = torch.where(batch.token_fields[LOSS_MASK], positions, -1)
    last = torch.full((len(batch),), -1, device=rewards.device).scatter_reduce(
        0, batch.sequence_ids, trained, reduce="amax"
    )
    per_token = rewards.new_zeros(batch.n_tokens)
    has_any = last >= 0
    per_token[last[has_any]] = rewards[has_any]
    return per_token


@dataclass(frozen=True)
class GroupAdvantages:
    """Advantages without a critic.

    1. Normalise the rewards [S] with ``reward_norm``.
    2. Put each reward at the last token of its completion, and subtract ``kl_ctl`` times the KL to the reference from
       every token.
    3. Sum the rewards from each token on, discounted by ``decay``.
    4. Normalise over all trained tokens with ``adv_norm``.

    Attributes:
        reward_norm: for step 1; ``None`` for none.
        adv_norm: for step 4; ``None`` for none.
        kl_ctl: weight of the KL penalty; 0 for none, which needs no reference.
        kl_estimator: estimator of the penalty.
        decay: discount times lambda.
    """

    reward_norm: Normalisation | None = None
    adv_norm: Normalisation | None = None
    kl_ctl: float = 0.0
    kl_estimator: KLEstimator = "k1"
    decay: float = 1.0

    @property
    def fields(self) -> frozenset[str]:
        """Token fields that the batch must have."""
        return frozenset({LOSS_MASK} | ({LOGPROBS, REF_LOGPROBS} if self.kl_ctl else set()))

    def __call__(self, batch: Batch) -> Tensor:
        """Advantages [T], 0 outside the loss mask, of a batch with the sequence fields ``rewards`` and ``group``."""
        rewards, groups = batch.sequence_fields[REWARDS], batch.sequence_fields[GROUPS]
        mask = batch.token_fields[LOSS_MASK]
        if self.reward_norm is not None:
            rewards = normalise(rewards, groups, self.reward_norm)
        per_token = rewards_at_last_token(batch, rewards)
        if self.kl_ctl:
            sampled, reference = batch.token_fields[LOGPROBS], batch.token_fields[REF_LOGPROBS]
            kl = kl_estimate(sampled, reference, self.kl_estimator)
            per_token = per_token - self.kl_ctl * torch.where(mask, kl, 0)
        advantages = discounted_sums(per_token, batch.lengths, self.decay)
        if self.adv_norm is not None:
            return normalise(advantages, groups[batch.sequence_ids], self.adv_norm, mask)
        return torch.where(mask, advantages, 0)
