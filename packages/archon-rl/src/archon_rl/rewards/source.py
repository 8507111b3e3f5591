"""``RewardSource``: where the function of the option ``reward`` comes from, as plain data for the reward processes."""

from __future__ import annotations

from dataclasses import dataclass

from archon_core.plugins import Registry, RewardSpec
from archon_core.plugins.reward_choice import choose_reward


@dataclass(frozen=True)
class RewardSource:
    """A reward function that is not imported yet.

    Attributes:
        name: as in the configuration.
        target: ``module:function``.
        origin: the distribution that provides it; empty for a function of a user's own module.
        folder: of a user's own module, which is imported from there; empty for an installed one.
        role: section of the configuration with the model that scores; empty for a function.
    """

    name: str
    target: str
    origin: str = ""
    folder: str = ""
    role: str = ""


def reward_source(name: str, registry: Registry) -> RewardSource:
    """The source of the reward that the configuration names; see ``choose_reward`` for errors."""
    chosen = choose_reward(name, registry)
    if isinstance(chosen, RewardSpec):
        return RewardSource(chosen.name, chosen.target, chosen.origin, role=chosen.role)
    return RewardSource(name, chosen.target, folder=str(chosen.folder))
