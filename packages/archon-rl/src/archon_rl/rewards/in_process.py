"""Reward functions in the trainer's own process (``rewards.processes=0``), without a time limit."""

from __future__ import annotations

from collections.abc import Sequence

from archon_rl.fingerprint import Fingerprint
from archon_rl.rewards.calls import Outcome, RewardCall, make_call
from archon_rl.rewards.checking import NamedReward
from archon_rl.rewards.loading import load_reward
from archon_rl.rewards.source import RewardSource
from archon_rl.rewards.source_fingerprint import function_fingerprint


class InProcessRewards:
    """A ``RewardRunner`` without processes."""

    def __init__(self, source: RewardSource) -> None:
        self._source = source
        self._reward: NamedReward | None = None

    def start(self) -> Fingerprint:
        """See ``RewardRunner``."""
        self._load()
        return function_fingerprint(self._source)

    def score(self, calls: Sequence[RewardCall]) -> list[Outcome]:
        """See ``RewardRunner``."""
        return [make_call(self._load(), call) for call in calls]

    def close(self) -> None:
        """See ``RewardRunner``."""

    def _load(self) -> NamedReward:
        if self._reward is None:
            self._reward = load_reward(self._source)
        return self._reward
