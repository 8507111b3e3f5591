"""Registers ``archon plan``. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.plugins import CommandSpec, hookimpl

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_commands() -> Iterable[CommandSpec]:
    return [
        CommandSpec(
            name="plan",
            target="archon_plan.cli:plan",
            summary="Predict memory, traffic and time of layouts, and find the best ones, without a device.",
        )
    ]
