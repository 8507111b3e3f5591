"""Rewards of completions: calls the reward function, and decides what happens to completions without a reward.

Data ranks divide the calls and gather the outcomes, so all ranks agree on which calls failed. Failures are counted and
explained; a run ends only if a whole batch fails, or too large a share of the recent calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from archon_core.errors import RewardError
from archon_core.ranks.failing_together import failing_together
from archon_core.ranks.ranks import DataRanks
from archon_rl.rewards.calls import Outcome, RewardCall, RewardRunner
from archon_rl.text_encoding import TextEncoder
from archon_rl.trainer.failures import FailureJudge, explain_no_group
from archon_rl.trainer.rollout_batch import Rollout
from archon_rl.trainer.sharing import ONE_RANK, map_over_ranks
from archon_rl.workflows.record_calls import reward_calls

FAILED = "reward/failed"
"""Metric: completions without a reward."""
TIMED_OUT = "reward/timeout"
"""Metric: completions whose reward call exceeded ``rewards.timeout_seconds``."""


@dataclass(frozen=True)
class Scores:
    """The outcomes of a rollout's completions.

    Attributes:
        rollout: the rollout.
        outcomes: per record, one outcome per completion.
    """

    rollout: Rollout
    outcomes: tuple[tuple[Outcome, ...], ...]

    @property
    def values(self) -> Tensor:
        """The rewards of the completions that have one, float32."""
        return torch.tensor([one.value for one in self._all() if not one.failed], dtype=torch.float32)

    @property
    def failures(self) -> list[Outcome]:
        """The outcomes of the completions without a reward."""
        return [one for one in self._all() if one.failed]

    def complete(self, *, may_be_empty: bool = False) -> Scores:
        """The records all of whose completions have a reward: advantages compare the completions of a record.

        Raises:
            RewardError: there is no such record, and there must be one.
        """
        kept = [i for i, outcomes in enumerate(self.outcomes) if not any(one.failed for one in outcomes)]
        if len(kept) == len(self.outcomes):
            return self
        if not kept and not may_be_empty:
            raise RewardError(explain_no_group(len(self.outcomes), self.failures[0]))
        return Scores(self.rollout.select(kept), tuple(self.outcomes[i] for i in kept))

    def metrics(self) -> dict[str, float]:
        """How many completions have no reward."""
        failures = self.failures
        return {FAILED: len(failures), TIMED_OUT: sum(one.timed_out for one in failures)}

    def _all(self) -> list[Outcome]:
        return [one for outcomes in self.outcomes for one in outcomes]


@dataclass
class Scorer:
    """Scores rollouts, and keeps count of failures over the run.

    Attributes:
        runner: calls the reward function.
        encoder: decodes completions.
        max_failed: largest share of the last ``WINDOW`` calls that may fail.
        note: shows a text to the user, on the first rank.
        failures: keeps count of them.
    """

    runner: RewardRunner
    encoder: TextEncoder
    max_failed: float
    note: Callable[[str], None]
    failures: FailureJudge = field(init=False)

    def __post_init__(self) -> None:
        self.failures = FailureJudge(self.max_failed, self.note)

    def __call__(
        self, rollout: Rollout, data_ranks: DataRanks = ONE_RANK, *, when: str, may_all_fail: bool = False
    ) -> Scores:
        """The outcome of every completion. Collective.

        The reward function gets the record as it was read, with the answer also under ``"answer"`` whatever the field's
        name in the data.

        Args:
            data_ranks: each scores the completions of some records; all get all outcomes.
            when: what the rollout is for, such as ``Step 3``; for messages.
            may_all_fail: accept a rollout without any reward, because it is small.

        Raises:
            RewardError: on every rank, every call failed, or more than ``max_failed`` of the recent ones.
            ConfigError: on every rank, the function raised it.
        """
        scores = Scores(rollout, tuple(self._outcomes(rollout, data_ranks)))
        outcomes = [one for group in scores.outcomes for one in group]
        self.failures(outcomes, when, may_all_fail=may_all_fail)
        return scores

    def _outcomes(self, rollout: Rollout, data_ranks: DataRanks) -> list[tuple[Outcome, ...]]:
        # Ranks that share a data rank's records leave them to the one whose results count.
        works = data_ranks.is_representative

        def outcomes_of_share(indices: list[int]) -> list[tuple[Outcome, ...]]:
            with failing_together(data_ranks.everyone):
                return self._score(rollout, indices) if works else [() for _ in indices]

        return map_over_ranks(len(rollout.records), outcomes_of_share, data_ranks)

    def _score(self, rollout: Rollout, indices: Sequence[int]) -> list[tuple[Outcome, ...]]:
        groups = [self._calls(rollout, index) for index in indices]
        calls = [call for group in groups if not isinstance(group, Outcome) for call in group]
        outcomes = iter(self.runner.score(calls))
        return [
            (group,) * len(rollout.completions[index])
            if isinstance(group, Outcome)
            else tuple(next(outcomes) for _ in group)
            for index, group in zip(indices, groups, strict=True)
        ]

    def _calls(self, rollout: Rollout, index: int) -> list[RewardCall] | Outcome:
        completions = [completion.token_ids for completion in rollout.completions[index]]
        return reward_calls(self.encoder, rollout.records[index], place_of(rollout, index), completions)


def place_of(rollout: Rollout, index: int) -> str:
    """The location of a rollout's record, for messages."""
    return getattr(rollout.records[index], "place", f"record {index} of the rollout")
