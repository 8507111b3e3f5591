"""What the option ``reward`` names: a reward of a plugin, or a function of a user's own module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from archon_core.contracts.data import REWARD_PARAMETERS, RewardSpec
from archon_core.plugins.own_functions import OwnFunction, find_own_function, names_own_function
from archon_core.plugins.registry import Registry

OPTION = "reward"


def choose_reward(text: str, registry: Registry, *, folders: Sequence[Path] | None = None) -> RewardSpec | OwnFunction:
    """The reward that ``text`` names; a plugin's name goes first.

    Args:
        text: the value of ``reward``.
        registry: the installed plugins.
        folders: see ``find_own_function``.

    Raises:
        UnknownNameError: no plugin provides the name, and it has no form of a function.
        PluginError: more than one plugin provides it.
        ConfigError: there is no such function, or it cannot be a reward.
    """
    installed = {name for spec in registry.all(RewardSpec) for name in (spec.name, *spec.aliases)}
    if text not in installed and names_own_function(text):
        return find_own_function(OPTION, text, REWARD_PARAMETERS, folders=folders)
    return registry.get(RewardSpec, text)
