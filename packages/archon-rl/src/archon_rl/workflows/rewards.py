"""Rewards for workflows: ``WorkflowParts.rewards`` over the run's reward function."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from archon_core.errors import RewardError
from archon_rl.rewards.calls import Outcome, RewardCall
from archon_rl.text_encoding import TextEncoder
from archon_rl.workflows.record_calls import reward_calls


class RewardsFailedError(RewardError):
    """Completions without a reward.

    Attributes:
        failures: why each of them has none.
    """

    def __init__(self, failures: Sequence[Outcome]) -> None:
        super().__init__(failures[0].error)
        self.failures = tuple(failures)


class AsyncScorer(Protocol):
    """Calls the reward function, in other threads or processes."""

    async def score(self, calls: Sequence[RewardCall]) -> list[Outcome]:
        """The outcome of each call."""


@dataclass
class RewardTally:
    """Reward calls of one record.

    Attributes:
        calls: their number.
        seconds: time from calls to their outcomes, summed over calls that wait at the same time.
    """

    calls: int = 0
    seconds: float = 0.0


_TALLY: ContextVar[RewardTally | None] = ContextVar("archon_reward_tally", default=None)


@contextmanager
def tallied() -> Iterator[RewardTally]:
    """Count the reward calls of this task, and of tasks that it starts in the block."""
    tally = RewardTally()
    token = _TALLY.set(tally)
    try:
        yield tally
    finally:
        _TALLY.reset(token)


@dataclass(frozen=True)
class FunctionRewards:
    """A ``RecordRewards`` over a reward function.

    Attributes:
        encoder: decodes completions.
        scorer: calls the function.
    """

    encoder: TextEncoder
    scorer: AsyncScorer

    async def __call__(self, record: Mapping[str, Any], completions: Sequence[Sequence[int]]) -> list[float]:
        """See ``RecordRewards``."""
        tally, start = _TALLY.get() or RewardTally(), time.perf_counter()
        place = getattr(record, "place", "a record without a location")
        calls = reward_calls(self.encoder, record, place, completions)
        try:
            outcomes = [calls] * len(completions) if isinstance(calls, Outcome) else await self.scorer.score(calls)
        finally:
            tally.calls += len(completions)
            tally.seconds += time.perf_counter() - start
        values = [outcome.value for outcome in outcomes if outcome.value is not None]
        if len(values) < len(outcomes):
            raise RewardsFailedError([outcome for outcome in outcomes if outcome.failed])
        return values
