"""What archon-testing adds to Archon. Imports no torch: targets are loaded when they are used."""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.plugins import CommandSpec, hookimpl

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_commands() -> Iterable[CommandSpec]:
    return [
        CommandSpec(
            name="verify",
            target="archon_testing.cli:verify",
            summary="Hold layouts against one process: loss, norm, every gradient, weights, log-probabilities.",
        )
    ]
