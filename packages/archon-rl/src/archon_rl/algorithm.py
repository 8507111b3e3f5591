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
from archon_rl.advantages import GROUPS, REWARDS, VALUES
from archon_rl.losses.aggregation import Aggregation, TokenMean
from archon_rl.losses.distillation import TEACHER_LOGPROBS
from archon_rl.losses.kl import REF_LOGPROBS
from archon_rl.losses.objective import Objective, TokenTerm
from archon_rl.losses.whole_batch import WholeBatchMask
from archon_rl.reward_shaping import RewardShaping

TRUNCATED = "truncated"
"""Sequence field, bool [S]: completions that ended at the length limit."""

ROLE_OF_FIELD: Mapping[str, str] = {REF_LOGPROBS: "ref", VALUES: "critic", TEACHER_LOGPROBS: "teacher"}
"""Token field -> role of the model that computes it: the algorithm needs the model if it reads the field."""


class AdvantageEstimator(Protocol):
    """Computes the advantage of every trained token."""

    @property
    def fields(self) -> frozenset[str]:
        """Token fields that the batch must have."""

    def __call__(self, batch: Batch) -> Tensor:
        """Advantages [T], 0 outside the loss mask."""


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
    """Keeps groups whose rewards differ: DAPO's dynamic sampling (arXiv:2503.14476, section 3.2) without new prompts.

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
        advantages: ``None`` for supervised training and pure distillation, which need no rewards.
        selection: removes sequences from the batch before log-probabilities are computed; ``None`` keeps all.
        filters: take rejected sequences out of the loss but keep them in the batch and its statistics.
        replace_logprobs: use the trainer's log-probabilities in place of the rollout's.
        n_minibatches: optimizer steps per rollout batch.
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
    filters: tuple[SequenceFilter, ...] = ()
    replace_logprobs: bool = False
    n_minibatches: int = 1

    @property
    def objective(self) -> Objective:
        """The loss that an engine minimises."""
        return Objective((self.loss, *self.regularisers), self.aggregation, self.temperature)

    @property
    def fields(self) -> frozenset[str]:
        """Token fields that the advantages, the masks and the objective read."""
        parts = (*self.masks, *((self.advantages,) if self.advantages else ()))
        return self.objective.fields.union(*(part.fields for part in parts))

    @property
    def needs_rewards(self) -> bool:
        """Whether it learns from rewards."""
        return self.advantages is not None

    @property
    def roles(self) -> frozenset[str]:
        """Models that it needs beside the actor, by their sections of the configuration."""
        return frozenset(role for name, role in ROLE_OF_FIELD.items() if name in self.fields)


class AlgorithmFactory(Protocol):
    """The ``target`` of an ``AlgorithmSpec`` that uses one of this package's trainers."""

    def __call__(self, config: Any, decisions: list[Decision]) -> Algorithm:
        """The composition for ``config``. Appends a decision for every requested setting that it changes."""
