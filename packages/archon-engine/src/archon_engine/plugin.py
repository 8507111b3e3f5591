"""Entry point: the Archon engine and ``archon convert``. Imports no torch."""

from __future__ import annotations

from archon_core.contracts.engine_config import ROLES
from archon_core.plugins import CommandSpec, ConfigSection, TrainEngineSpec, hookimpl

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_train_engines() -> list[TrainEngineSpec]:
    return [
        TrainEngineSpec(
            name="archon",
            target="archon_engine.engine:ArchonEngine",
            summary="FSDP2, tensor, context, pipeline and expert parallel training on plain PyTorch",
            config=tuple(ConfigSection(role, "archon_engine.options.archon:ArchonEngineConfig") for role in ROLES),
            letters="dtpcer",
            hybrid=True,
            axes="dtpcre",
            preview="archon_engine.options.preview:preview",
            model_type="archon_engine.models.hf_config:model_type_of",
            selectors=(("schedule", "archon.pp_schedule"), ("model", "archon.model"), ("moe", "archon.moe")),
        )
    ]


@hookimpl
def archon_commands() -> list[CommandSpec]:
    return [
        CommandSpec(
            name="convert",
            target="archon_engine.cli.convert:convert",
            summary="Convert a checkpoint: a training state to a Hugging Face folder, or back.",
        )
    ]
