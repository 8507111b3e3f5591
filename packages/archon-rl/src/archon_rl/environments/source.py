"""``EnvironmentSource``: what ``environment.name`` names."""

from __future__ import annotations

from dataclasses import dataclass

from archon_core.contracts.environments import ENVIRONMENT_PARAMETERS, EnvironmentSpec
from archon_core.plugins import Registry
from archon_core.plugins.own_or_plugin import choose
from archon_rl.chosen_function import ChosenFunction

OPTION = "environment.name"


@dataclass(frozen=True)
class EnvironmentSource(ChosenFunction):
    """An environment's factory that is not imported yet."""

    option = OPTION
    parameters = ENVIRONMENT_PARAMETERS


def environment_source(name: str, registry: Registry) -> EnvironmentSource:
    """The source of the environment that the configuration names; see ``choose`` for errors."""
    chosen = choose(EnvironmentSpec, name, ENVIRONMENT_PARAMETERS, registry, option=OPTION)
    if isinstance(chosen, EnvironmentSpec):
        return EnvironmentSource(chosen.name, chosen.target, chosen.origin)
    return EnvironmentSource(name, chosen.target, folder=str(chosen.folder))
