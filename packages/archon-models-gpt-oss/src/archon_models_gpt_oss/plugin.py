"""Entry point: the architecture of this package. Imports no torch."""

from __future__ import annotations

from archon_core.contracts.model import ModelSpec
from archon_core.plugins import hookimpl

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_models() -> list[ModelSpec]:
    return [
        ModelSpec(
            name="gpt_oss",
            target="archon_models_gpt_oss.decoder:GptOssDecoder",
            summary="gpt-oss: attention sinks, alternating windows, experts with biases",
            model_types=("gpt_oss",),
            arguments="archon_models_gpt_oss.arguments:GptOssArguments",
            weight_map="archon_models_gpt_oss.weight_map:weight_map",
            parallel_plan="archon_models_gpt_oss.parallel_plan:parallel_plan",
            tiny_config="archon_models_gpt_oss.tiny_config:tiny_gpt_oss",
            anatomy="archon_models_gpt_oss.anatomy:anatomy",
            capabilities=frozenset({"tp", "cp", "ep", "pp", "tied", "critic", "tree"}),
            needs=("moe",),
        )
    ]
