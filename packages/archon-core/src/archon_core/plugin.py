"""What core itself provides, in the form in which plugins provide theirs."""

from __future__ import annotations

from archon_core.plugins.hookspecs import hookimpl
from archon_core.plugins.specs import CommandSpec, TrainEngineSpec

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_train_engines() -> list[TrainEngineSpec]:
    return [
        TrainEngineSpec(
            name="archon",
            target="archon_core.engine.archon:ArchonEngine",
            summary="FSDP2, tensor, context, pipeline and expert parallel training on plain PyTorch",
            letters="dtpcer",
            hybrid=True,
            axes="dtpcre",
        )
    ]


@hookimpl
def archon_commands() -> list[CommandSpec]:
    return [
        CommandSpec(
            name="train", target="archon_core.cli.train:train", summary="Train a model as a YAML file describes."
        ),
        CommandSpec(
            name="convert",
            target="archon_core.cli.convert:convert",
            summary="Convert a checkpoint: a training state to a Hugging Face folder, or back.",
        ),
        CommandSpec(
            name="plugins",
            target="archon_core.cli.plugins:plugins",
            summary="List the installed plugins, what they provide and what is wrong with them.",
        ),
        CommandSpec(name="models", target="archon_core.cli.listings:models", summary="List the model architectures."),
        CommandSpec(
            name="schedules", target="archon_core.cli.listings:schedules", summary="List the pipeline schedules."
        ),
        CommandSpec(
            name="doctor",
            target="archon_core.cli.doctor:doctor",
            summary="Check Python, torch, devices, plugins and versions.",
        ),
    ]
