"""Plugin registration of archon-testing. Imports no torch: targets are loaded on use."""

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
            summary="Compare layouts with one process: loss, norm, every gradient, weights, log-probabilities.",
        )
    ]
