"""Entry point: the architectures of this package. Imports no torch."""

from __future__ import annotations

from archon_core.contracts.model import ModelSpec
from archon_core.plugins import hookimpl

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_models() -> list[ModelSpec]:
    return [
        ModelSpec(
            name="glm4_moe",
            target="archon_models_glm.decoder:GlmDecoder",
            summary="GLM-4.5 and GLM-4.6 with mixture-of-experts layers",
            model_types=("glm4_moe",),
            arguments="archon_models_glm.arguments:GlmArguments",
            weight_map="archon_models_glm.weight_map:weight_map",
            parallel_plan="archon_models_glm.parallel_plan:parallel_plan",
            tiny_config="archon_models_glm.tiny_config:tiny_glm4_moe",
            anatomy="archon_models_glm.anatomy:anatomy",
            # No critic: transformers has no class to save one with.
            capabilities=frozenset({"tp", "cp", "ep", "pp", "tied", "tree"}),
            needs=("moe",),
        )
    ]
