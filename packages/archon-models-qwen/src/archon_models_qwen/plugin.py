"""Entry point: the architectures of this package. Imports no torch."""

from __future__ import annotations

from archon_core.contracts.model import Capability, ModelSpec
from archon_core.plugins import hookimpl

ARCHON_PLUGIN_API = "1.0"


CAPABILITIES: frozenset[Capability] = frozenset({"tp", "cp", "pp", "tied", "critic"})


ANATOMY = "archon_models_qwen.anatomy:anatomy"


@hookimpl
def archon_models() -> list[ModelSpec]:
    dense = [
        ModelSpec(
            name=family,
            target="archon_models_qwen.decoder:QwenDecoder",
            summary=summary,
            model_types=(family,),
            arguments="archon_models_qwen.arguments:QwenArguments",
            weight_map="archon_models_qwen.weight_map:weight_map",
            parallel_plan="archon_models_qwen.parallel_plan:parallel_plan",
            tiny_config=f"archon_models_qwen.tiny_config:tiny_{family}",
            anatomy=ANATOMY,
            capabilities=CAPABILITIES,
        )
        for family, summary in (
            ("qwen2", "Qwen2 and Qwen2.5, dense: biased attention projections"),
            ("qwen3", "Qwen3, dense: normalised query and key heads"),
        )
    ]
    with_experts = ModelSpec(
        name="qwen3_moe",
        target="archon_models_qwen.moe_decoder:QwenMoEDecoder",
        summary="Qwen3 with mixture-of-experts layers",
        model_types=("qwen3_moe",),
        arguments="archon_models_qwen.moe_arguments:QwenMoEArguments",
        weight_map="archon_models_qwen.weight_map:moe_weight_map",
        parallel_plan="archon_models_qwen.parallel_plan:moe_parallel_plan",
        tiny_config="archon_models_qwen.tiny_config:tiny_qwen3_moe",
        anatomy=ANATOMY,
        capabilities=CAPABILITIES | {"ep"},
        needs=("moe",),
    )
    return [*dense, with_experts]
