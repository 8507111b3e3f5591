"""Core's own commands, in the form in which plugins provide theirs."""

from __future__ import annotations

from archon_core.plugins.hookspecs import hookimpl
from archon_core.plugins.kinds import CommandSpec

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_commands() -> list[CommandSpec]:
    return [
        CommandSpec(
            name="plugins",
            target="archon_core.cli.plugins:plugins",
            summary="List installed plugins, what they provide, and their problems.",
        ),
        CommandSpec(name="models", target="archon_core.cli.listings:models", summary="List model architectures."),
        CommandSpec(name="schedules", target="archon_core.cli.listings:schedules", summary="List pipeline schedules."),
        CommandSpec(
            name="doctor",
            target="archon_core.cli.doctor:doctor",
            summary="Check Python, torch, devices, plugins and versions.",
        ),
    ]
