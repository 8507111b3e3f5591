"""An algorithm is a composition: how rewards are shaped, advantages estimated, sequences filtered, and what is
minimised. Trainers understand compositions, not names; presets (``archon_rl.presets``) give them names.

A package brings an algorithm of its own as a function ``(config, decisions) -> Algorithm`` named by an
``AlgorithmSpec``, with ``archon_rl.trainer.rl:RLTrainer`` or ``archon_rl.trainer.sft:SFTTrainer`` as its trainer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.decisions import Decision
from archon_rl.advantages import GROUPS, REWARDS
from archon_rl.losses.aggregation import Aggregation, TokenMean
from archon_rl.losses.objective import Objective, TokenTerm
from archon_rl.reward_shaping import RewardShaping

TRUNCATED = "truncated"
"""Sequence field, bool [S]: completions that ended at the length limit."""


class AdvantageEstimator(Protocol):
    """Gives every trained token its advantage."""

    @property
    def fields(self) -> frozenset[str]:
        """Token fields that the batch must have."""

    def __call__(self, batch: Batch) -> Tensor:
        """[T], 0 outside the loss mask."""


class SequenceFilter(Protocol):
    """Chooses the sequences that are trained on. The others keep their place in the statistics of rewards."""

    def __call__(self, batch: Batch) -> Tensor:
        """bool [S]: which to keep."""


@dataclass(frozen=True)
class DropTruncated:
    """Keeps completions that ended by themselves (DAPO's overlong filtering, arXiv:2503.14476, section 3.4)."""

    def __call__(self, batch: Batch) -> Tensor:
        return ~batch.sequence_fields[TRUNCATED]


@dataclass(frozen=True)
class MixedGroups:
    """Keeps groups whose rewards differ: DAPO's dynamic sampling (arXiv:2503.14476, section 3.2) without new prompts.

    Where all rewards are equal, advantages relative to the group are 0 and there is nothing to learn. A KL penalty in
    the reward, or a mean over the batch, would teach something even there; these groups are left out all the same.
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
        loss: the policy loss, or the supervised one.
        regularisers: further terms of the objective.
        aggregation: how per-token losses become one number.
        temperature: that of the distribution that is trained.
        rewards: what becomes of raw rewards.
        advantages: ``None`` for supervised training.
        selection: sequences that it rejects leave the batch before anything is computed for them; ``None`` keeps all.
        filters: sequences that any of them rejects are not trained on, but stay in the batch and its statistics.
        replace_logprobs: the trainer's log-probabilities take the place of the rollout's.
        n_minibatches: optimizer steps per rollout batch.
    """

    name: str
    loss: TokenTerm
    regularisers: tuple[TokenTerm, ...] = ()
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
        """What an engine minimises."""
        return Objective((self.loss, *self.regularisers), self.aggregation, self.temperature)

    @property
    def fields(self) -> frozenset[str]:
        """Token fields that a batch needs before and during the update."""
        return self.objective.fields | (self.advantages.fields if self.advantages else frozenset())


class AlgorithmFactory(Protocol):
    """``target`` of the algorithm specs whose trainers are this package's."""

    def __call__(self, config: Any, decisions: list[Decision]) -> Algorithm:
        """The composition for a configuration; what it changes of what was asked is appended to ``decisions``."""
