"""``ToolSource``: where a tool comes from, as plain data for tool processes."""

from __future__ import annotations

from dataclasses import dataclass

from archon_core.plugins import Registry, ToolSpec
from archon_core.plugins.own_or_plugin import choose
from archon_rl.chosen_function import ChosenFunction

OPTION = "tools.names"


@dataclass(frozen=True)
class ToolSource(ChosenFunction):
    """A tool that is not imported yet; models call it by its ``name``.

    Attributes:
        place: see ``ToolSpec``.
    """

    option = OPTION
    parameters = None

    place: str = "tool_process"


def tool_source(text: str, registry: Registry) -> ToolSource:
    """The tool that an item of ``tools.names`` names: a plugin's, or ``module:function``, whose name is that of the
    function; see ``choose`` for errors."""
    chosen = choose(ToolSpec, text, None, registry, option=OPTION)
    if isinstance(chosen, ToolSpec):
        return ToolSource(chosen.name, chosen.target, chosen.origin, place=chosen.place)
    return ToolSource(chosen.function, chosen.target, folder=str(chosen.folder))
