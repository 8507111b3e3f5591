"""Entry point: the architectures of this package. Imports no torch."""

from __future__ import annotations

from archon_core.contracts.model import ModelSpec
from archon_core.plugins import hookimpl

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_models() -> list[ModelSpec]:
    return [
        ModelSpec(
            name="deepseek_v3",
            target="archon_models_deepseek.decoder:DeepseekDecoder",
            summary="DeepSeek-V3, V3.1 and R1: latent attention and mixture-of-experts layers",
            model_types=("deepseek_v3",),
            arguments="archon_models_deepseek.arguments:DeepseekArguments",
            weight_map="archon_models_deepseek.weight_map:weight_map",
            parallel_plan="archon_models_deepseek.parallel_plan:parallel_plan",
            tiny_config="archon_models_deepseek.tiny_config:tiny_deepseek_v3",
            anatomy="archon_models_deepseek.anatomy:anatomy",
            capabilities=frozenset({"tp", "cp", "ep", "pp", "tied", "critic", "tree"}),
            needs=("moe",),
        )
    ]
