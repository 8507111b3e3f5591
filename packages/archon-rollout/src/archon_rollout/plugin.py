"""Plugin registration of archon-rollout. Imports no torch: targets are loaded on use."""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.plugins import CommandSpec, InferenceEngineSpec, hookimpl

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_inference_engines() -> Iterable[InferenceEngineSpec]:
    return [
        InferenceEngineSpec(
            name="local",
            target="archon_rollout.local_engine:LocalEngine",
            summary="samples on the trainer's own module, with a KV cache; needs no server",
            letters="",
        )
    ]


@hookimpl
def archon_commands() -> Iterable[CommandSpec]:
    return [
        CommandSpec(
            name="generate",
            target="archon_rollout.cli:generate",
            summary="Complete prompts with the model in a checkpoint folder",
        ),
        CommandSpec(
            name="serve",
            target="archon_rollout.serve_cli:serve",
            summary="Serve the model in a checkpoint folder over HTTP",
        ),
    ]
