"""Entry point: transformers' own modules as one model, and the engine that runs nothing else. Imports no torch."""

from __future__ import annotations

from archon_core.contracts.engine import TrainEngineSpec
from archon_core.contracts.engine_config import ROLES
from archon_core.contracts.model import ModelSpec
from archon_core.plugins import ConfigSection, hookimpl

ARCHON_PLUGIN_API = "1.0"

MODEL = "hf"


@hookimpl
def archon_models() -> list[ModelSpec]:
    return [
        ModelSpec(
            name=MODEL,
            target="archon_models_hf.decoder:HfDecoder",
            summary="any causal language model of transformers, unchanged; chosen by name only",
            arguments="archon_models_hf.arguments:HfArguments",
            weight_map="archon_models_hf.weight_map:weight_map",
            parallel_plan="archon_models_hf.parallel_plan:parallel_plan",
            tiny_config="archon_models_hf.tiny_config:tiny_config",
            anatomy="archon_models_hf.anatomy:anatomy",
            capabilities=frozenset({"tp", "cp", "pp", "tied", "critic", "tree"}),
            rounds_inside="transformers' modules compute norms, rotations and routing in float32 in any case",
        )
    ]


@hookimpl
def archon_train_engines() -> list[TrainEngineSpec]:
    return [
        TrainEngineSpec(
            name="fsdp",
            target="archon_engine.engine:ArchonEngine",
            summary="the archon engine with transformers' own modules (model hf)",
            letters="dtcr",
            hybrid=False,
            axes="dtcr",
            model=MODEL,
            config=tuple(ConfigSection(role, "archon_engine.options.archon:ArchonEngineConfig") for role in ROLES),
            preview="archon_engine.options.preview:preview",
            model_type="archon_engine.models.hf_config:model_type_of",
            selectors=(("model", "archon.model"),),
        )
    ]
