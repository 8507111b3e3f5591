"""Registers ``archon report`` and ``archon watch``. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.plugins import CommandSpec, hookimpl

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_commands() -> Iterable[CommandSpec]:
    return [
        CommandSpec(
            name="report",
            target="archon_report.cli:report",
            summary="Show runs: one HTML page with curves, samples and configuration, and a table of steps.",
        ),
        CommandSpec(
            name="watch",
            target="archon_report.watch_cli:watch",
            summary="Follow runs in the terminal: reward, loss, speed, staleness, time left.",
        ),
    ]
