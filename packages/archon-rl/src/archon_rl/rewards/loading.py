"""Imports a reward function, in the process that calls it."""

from __future__ import annotations

from archon_rl.rewards.checking import NamedReward
from archon_rl.rewards.source import RewardSource


def load_reward(source: RewardSource) -> NamedReward:
    """Import the function; see ``ChosenFunction.load`` for errors."""
    return NamedReward(source.name, source.load())
