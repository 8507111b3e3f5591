"""An algorithm is a composition: reward shaping, advantage estimator, sequence filters and objective. Trainers run
compositions; presets (``archon_rl.presets``) name the published ones.

To add an algorithm, write a function ``(config, decisions) -> Algorithm`` and name it in an ``AlgorithmSpec``, with
``archon_rl.trainer.rl:RLTrainer`` or ``archon_rl.trainer.sft:SFTTrainer`` as the trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.decisions import Decision
from archon_rl.advantages import GROUPS, REWARDS
from archon_rl.losses.aggregation import Aggregation, TokenMean
from archon_rl.losses.kl import REF_LOGPROBS
from archon_rl.losses.objective import Objective, TokenTerm
from archon_rl.losses.value import VALUES, ValueTerm
from archon_rl.losses.whole_batch import WholeBatchMask
from archon_rl.reward_shaping import RewardShaping

TRUNCATED = "truncated"
"""Sequence field, bool [S]: completions that ended at the length limit."""

ROLE_OF_FIELD: Mapping[str, str] = {REF_LOGPROBS: "ref", VALUES: "critic"}
"""Token field -> role of the model that computes it: the algorithm needs the model if it reads the field."""


class AdvantageEstimator(Protocol):
    """Computes the advantage of every trained token."""

    @property
    def fields(self) -> frozenset[str]:
        """Token fields that the batch must have."""

    def __call__(self, batch: Batch) -> Tensor:
        """Advantages [T], 0 outside the loss mask."""


class ReturnEstimator(AdvantageEstimator, Protocol):
    """An estimator that also gives the returns that a critic learns."""

    def with_returns(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Advantages and returns, both [T] and 0 outside the loss mask."""


class SequenceFilter(Protocol):
    """Chooses the sequences to train on. Rejected sequences still count in the reward statistics."""

    def __call__(self, batch: Batch) -> Tensor:
        """bool [S]: true for sequences to keep."""


@dataclass(frozen=True)
class DropTruncated:
    """Keeps completions that did not reach the length limit (DAPO's overlong filtering, arXiv:2503.14476, section
    3.4)."""

    def __call__(self, batch: Batch) -> Tensor:
        return ~batch.sequence_fields[TRUNCATED]


@dataclass(frozen=True)
class MixedGroups:
    """Keeps groups whose rewards differ, for DAPO's dynamic sampling (arXiv:2503.14476, section 3.2).

    Where all rewards are equal, group-relative advantages are 0. The filter drops such groups even if a KL penalty in
    the reward, or normalisation over the batch, would give them a gradient.
    """

    def __call__(self, batch: Batch) -> Tensor:
        rewards, groups = batch.sequence_fields[REWARDS], batch.sequence_fields[GROUPS]
        n_groups = int(groups.max()) + 1 if len(batch) else 0
        highest = rewards.new_full((n_groups,), -torch.inf).scatter_reduce(0, groups, rewards, "amax")
        lowest = rewards.new_full((n_groups,), torch.inf).scatter_reduce(0, groups, rewards, "amin")
        return (highest > lowest)[groups]


@dataclass(frozen=True)
class CriticTraining:
    """How the critic learns.

    Attributes:
        loss: the value loss.
        filters: take rejected sequences out of the critic's loss.
        n_minibatches: optimizer steps per rollout batch.
        warmup_steps: training steps at the start in which the critic learns and the actor does not.
    """

    loss: ValueTerm = field(default_factory=ValueTerm)
    filters: tuple[SequenceFilter, ...] = ()
    n_minibatches: int = 1
    warmup_steps: int = 0

    @property
    def objective(self) -> Objective:
        """The loss that the critic's engine minimises, a mean over tokens."""
        return Objective((self.loss,))


@dataclass(frozen=True)
class Algorithm:
    """A training algorithm.

    Attributes:
        name: for messages.
        loss: the policy loss, or the supervised loss.
        regularisers: further terms of the objective.
        masks: bool token fields that the loss reads, computed over each mini-batch before its update.
        aggregation: reduces per-token losses to a scalar.
        temperature: of the distribution that is trained.
        rewards: shapes raw rewards.
        advantages: ``None`` for supervised training; with a critic, a ``ReturnEstimator``.
        selection: removes groups from the batch before log-probabilities are computed; ``None`` keeps all.
        max_rounds: largest number of sampling rounds per step: above 1, further prompts replace those whose groups
            ``selection`` removed.
        filters: take rejected sequences out of the loss but keep them in the batch and its statistics.
        replace_logprobs: use the trainer's log-probabilities in place of the rollout's.
        n_minibatches: optimizer steps per rollout batch.
        critic: how the critic learns; ``None`` without one.
    """

    name: str
    loss: TokenTerm
    regularisers: tuple[TokenTerm, ...] = ()
    masks: tuple[WholeBatchMask, ...] = ()
    aggregation: Aggregation = field(default_factory=TokenMean)
    temperature: float = 1.0
    rewards: RewardShaping = field(default_factory=RewardShaping)
    advantages: AdvantageEstimator | None = None
    selection: SequenceFilter | None = None
    max_rounds: int = 1
    filters: tuple[SequenceFilter, ...] = ()
    replace_logprobs: bool = False
    n_minibatches: int = 1
    critic: CriticTraining | None = None

    @property
    def objective(self) -> Objective:
        """The loss that an engine minimises."""
        return Objective((self.loss, *self.regularisers), self.aggregation, self.temperature)

    @property
    def objectives(self) -> Mapping[str, Objective]:
        """Role -> the loss that its engine minimises, of every model that is trained."""
        return {"actor": self.objective, **({} if self.critic is None else {"critic": self.critic.objective})}

    @property
    def fields(self) -> frozenset[str]:
        """Token fields that the advantages, the masks and the actor's objective read."""
        parts = (*self.masks, *((self.advantages,) if self.advantages else ()))
        return self.objective.fields.union(*(part.fields for part in parts))

    @property
    def warmup_steps(self) -> int:
        """Steps at the start that do not train the actor."""
        return 0 if self.critic is None else self.critic.warmup_steps

    def updates_per_step(self, role: str) -> int | None:
        """Optimizer steps of a role in a training step; ``None`` for a model that is not trained."""
        if role == "actor":
            return self.n_minibatches
        return self.critic.n_minibatches if role == "critic" and self.critic is not None else None

    def updates(self, role: str, total_steps: int) -> int | None:
        """Optimizer steps of a role in ``total_steps`` training steps; ``None`` for a model that is not trained."""
        per_step = self.updates_per_step(role)
        if per_step is None:
            return None
        return per_step * (total_steps - self.warmup_steps if role == "actor" else total_steps)

    @property
    def roles(self) -> frozenset[str]:
        """Models that it needs beside the actor, by their sections of the configuration."""
        return frozenset(role for name, role in ROLE_OF_FIELD.items() if name in self.fields)


class AlgorithmFactory(Protocol):
    """The ``target`` of an ``AlgorithmSpec`` that uses one of this package's trainers."""

    def __call__(self, config: Any, decisions: list[Decision]) -> Algorithm:
        """The composition for ``config``. Appends a decision for every requested setting that it changes."""
