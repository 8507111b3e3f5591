"""Plugin registration of archon-scaffold: ``archon new``. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.plugins import CommandSpec, hookimpl

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_commands() -> Iterable[CommandSpec]:
    return [
        CommandSpec(
            name="new",
            target="archon_scaffold.cli:new",
            summary="Create a plugin package: a model, a schedule, a reward or an algorithm.",
        )
    ]
