"""What the option ``reward`` names: a reward of a plugin, or a function of a user's own module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from archon_core.contracts.data import REWARD_PARAMETERS, RewardSpec
from archon_core.plugins.own_functions import OwnFunction
from archon_core.plugins.own_or_plugin import choose
from archon_core.plugins.registry import Registry


def choose_reward(text: str, registry: Registry, *, folders: Sequence[Path] | None = None) -> RewardSpec | OwnFunction:
    """The reward that ``text`` names; see ``choose``."""
    return choose(RewardSpec, text, REWARD_PARAMETERS, registry, folders=folders)
