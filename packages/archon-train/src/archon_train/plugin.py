"""Plugin registration of archon-train: ``archon train`` and AReaL's dialect. Imports no torch."""

from __future__ import annotations

from archon_core.plugins import CommandSpec, DialectSpec, hookimpl

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_commands() -> list[CommandSpec]:
    return [
        CommandSpec(
            name="train", target="archon_train.cli.train:train", summary="Run the training that a YAML file describes."
        )
    ]


@hookimpl
def archon_dialects() -> list[DialectSpec]:
    return [DialectSpec(name="areal", target="archon_train.areal:DIALECT", summary="AReaL's YAML files")]
