"""Options that name a spec of a plugin or a function of a user's own module, such as ``reward`` and ``workflow``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from archon_core.contracts.spec import Spec
from archon_core.plugins.own_functions import OwnFunction, find_own_function, names_own_function
from archon_core.plugins.registry import Registry

S = TypeVar("S", bound=Spec)


def choose(
    kind: type[S],
    text: str,
    parameters: Sequence[str] | None,
    registry: Registry,
    *,
    option: str = "",
    folders: Sequence[Path] | None = None,
) -> S | OwnFunction:
    """What an option with the name of ``kind`` names; a plugin's name goes first.

    Args:
        kind: class of the specs.
        text: the value of the option.
        parameters: positional parameters of a function; see ``find_own_function``.
        registry: the installed plugins.
        option: name of the option, for messages; empty if it is that of the kind.
        folders: see ``find_own_function``.

    Raises:
        UnknownNameError: no plugin provides the name, and it has no form of a function.
        PluginError: more than one plugin provides it.
        ConfigError: there is no such function, or it cannot be called with the parameters.
    """
    installed = {name for spec in registry.all(kind) for name in (spec.name, *spec.aliases)}
    if text not in installed and names_own_function(text):
        return find_own_function(option or kind.kind, text, parameters, folders=folders)
    return registry.get(kind, text)
