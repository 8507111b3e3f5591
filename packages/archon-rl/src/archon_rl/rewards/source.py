"""``RewardSource``: where the function of the option ``reward`` comes from, as plain data for the reward processes."""

from __future__ import annotations

from dataclasses import dataclass

from archon_core.contracts.data import REWARD_PARAMETERS
from archon_core.plugins import Registry, RewardSpec
from archon_core.plugins.reward_choice import choose_reward
from archon_rl.chosen_function import ChosenFunction


@dataclass(frozen=True)
class RewardSource(ChosenFunction):
    """A reward function that is not imported yet.

    Attributes:
        role: section of the configuration with the model that scores; empty for a function.
    """

    option = "reward"
    parameters = REWARD_PARAMETERS

    role: str = ""


def reward_source(name: str, registry: Registry) -> RewardSource:
    """The source of the reward that the configuration names; see ``choose_reward`` for errors."""
    chosen = choose_reward(name, registry)
    if isinstance(chosen, RewardSpec):
        return RewardSource(chosen.name, chosen.target, chosen.origin, role=chosen.role)
    return RewardSource(name, chosen.target, folder=str(chosen.folder))
