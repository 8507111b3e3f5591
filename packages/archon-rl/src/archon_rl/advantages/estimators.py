"""Advantage estimators: with values of a critic, or relative to the other samples of a prompt.

Legend: S sequences, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_rl.advantages.gae import ConstantLambda, GAELambda, TimestepUnit, generalised_advantages
from archon_rl.advantages.normalisation import Normalisation, normalise
from archon_rl.losses.aggregation import LOSS_MASK, trained_tokens
from archon_rl.losses.kl import REF_LOGPROBS, KLEstimator, kl_estimate
from archon_rl.losses.policy_term import LOGPROBS
from archon_rl.losses.value import VALUES

REWARDS = "rewards"
"""Sequence field [S]: shaped rewards."""
GROUPS = "group"
"""Sequence field, int64 [S]: index of the prompt that the sequence was sampled for."""


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

    1. Normalise the rewards [S] with ``reward_norm``, and set those of the sequences ``without_reward`` to 0.
    2. Put each reward at the last token of its completion, and subtract ``kl_ctl`` times the KL to the reference from
       every token (REINFORCE++, arXiv:2501.03262, eq. 4; RLOO, arXiv:2402.14740, eq. 3 and 4).
    3. Generalised advantage estimation with values 0: sums of the rewards from each token on, discounted by
       ``discount`` times lambda.
    4. Normalise over all trained tokens with ``adv_norm``.

    With turns as steps, each token pays for its own KL alone, after step 3. Otherwise every token of a turn would pay
    for the whole turn. AReaL does the same.

    Attributes:
        reward_norm: for step 1; ``None`` for none.
        adv_norm: for step 4; ``None`` for none.
        kl_ctl: weight of the KL penalty; 0 for none, which needs no reference.
        kl_estimator: estimator of the penalty.
        discount: discount per step.
        gae_lambda: lambda of every sequence.
        unit: what a step is.
        without_reward: sequence field, bool [S]: sequences whose reward is 0 after step 1; ``None`` for none.
    """

    reward_norm: Normalisation | None = None
    adv_norm: Normalisation | None = None
    kl_ctl: float = 0.0
    kl_estimator: KLEstimator = "k1"
    discount: float = 1.0
    gae_lambda: GAELambda = field(default_factory=ConstantLambda)
    unit: TimestepUnit = "token"
    without_reward: str | None = None

    @property
    def fields(self) -> frozenset[str]:
        """Token fields that the batch must have."""
        return frozenset({LOSS_MASK} | ({LOGPROBS, REF_LOGPROBS} if self.kl_ctl else set()))

    def __call__(self, batch: Batch) -> Tensor:
        """Advantages [T], 0 outside the loss mask, of a batch with the sequence fields ``rewards`` and ``group``."""
        return self.with_returns(batch)[0]

    def with_returns(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Advantages, and the returns that a critic learns, both [T] and 0 outside the loss mask."""
        rewards, groups = batch.sequence_fields[REWARDS], batch.sequence_fields[GROUPS]
        mask = batch.token_fields[LOSS_MASK]
        if self.reward_norm is not None:
            rewards = normalise(rewards, groups, self.reward_norm, lengths=trained_tokens(batch))
        if self.without_reward is not None:
            rewards = torch.where(batch.sequence_fields[self.without_reward], 0, rewards)
        per_token, penalty = rewards_at_last_token(batch, rewards), self._kl_penalty(batch)
        if self.unit == "token":
            per_token = per_token - penalty
        estimate = partial(
            generalised_advantages,
            batch,
            per_token,
            self._values(batch),
            discount=self.discount,
            unit=self.unit,
            last_values=self._last_values(batch),
        )
        advantages, returns = estimate(gae_lambda=self.gae_lambda)
        if self._returns_lambda is not None:
            _, returns = estimate(gae_lambda=self._returns_lambda)
        if self.unit == "turn":
            advantages = advantages - penalty
        if self.adv_norm is not None:
            advantages = normalise(advantages, groups[batch.sequence_ids], self.adv_norm, mask)
        return torch.where(mask, advantages, 0), returns

    @property
    def _returns_lambda(self) -> GAELambda | None:
        return None

    def _values(self, batch: Batch) -> Tensor | None:
        return None

    def _last_values(self, batch: Batch) -> Tensor | None:
        return None

    def _kl_penalty(self, batch: Batch) -> Tensor:
        """[T], 0 outside the loss mask."""
        mask = batch.token_fields[LOSS_MASK]
        if not self.kl_ctl:
            return batch.sequence_fields[REWARDS].new_zeros(batch.n_tokens)
        sampled, reference = batch.token_fields[LOGPROBS], batch.token_fields[REF_LOGPROBS]
        return self.kl_ctl * torch.where(mask, kl_estimate(sampled, reference, self.kl_estimator), 0)


@dataclass(frozen=True)
class ValueAdvantages(GroupAdvantages):
    """Advantages with a critic's values (PPO, arXiv:1707.06347): step 3 uses the token field ``values``.

    Attributes:
        bootstrap: sequence field, bool [S]: sequences that were cut off, whose last value continues them; ``None`` for
            none. The value is the one at the sequence's last token, which predicts nothing.
        returns_lambda: lambda of the returns that the critic learns, if it is another one (decoupled GAE,
            arXiv:2503.01491); ``None`` for that of the advantages.
    """

    bootstrap: str | None = None
    returns_lambda: GAELambda | None = None

    @property
    def fields(self) -> frozenset[str]:
        return super().fields | {VALUES}

    @property
    def _returns_lambda(self) -> GAELambda | None:
        return self.returns_lambda

    def _values(self, batch: Batch) -> Tensor:
        return torch.where(batch.token_fields[LOSS_MASK], batch.token_fields[VALUES], 0)

    def _last_values(self, batch: Batch) -> Tensor | None:
        if self.bootstrap is None:
            return None
        ends = torch.tensor(batch.offsets[1:], device=batch.input_ids.device) - 1
        return torch.where(batch.sequence_fields[self.bootstrap], batch.token_fields[VALUES][ends], 0)
