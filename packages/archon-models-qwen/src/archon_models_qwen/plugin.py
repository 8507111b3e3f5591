"""Entry point: the architectures of this package. Imports no torch."""

from __future__ import annotations

from archon_core.contracts.model import Capability, ModelSpec
from archon_core.plugins import hookimpl

ARCHON_PLUGIN_API = "1.0"


CAPABILITIES: frozenset[Capability] = frozenset({"tp", "cp", "pp", "tied", "critic"})


ANATOMY = "archon_models_qwen.anatomy:anatomy"
HYBRID_ANATOMY = "archon_models_qwen.hybrid_anatomy:anatomy"


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
            capabilities=CAPABILITIES | {"tree"},
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
        capabilities=CAPABILITIES | {"ep", "tree"},
        needs=("moe",),
    )
    hybrid = ModelSpec(
        name="qwen3_5",
        target="archon_models_qwen.hybrid_decoder:Qwen35Decoder",
        summary="Qwen3.5 and Qwen3.6, dense, text: Gated DeltaNet and gated attention",
        model_types=("qwen3_5_text", "qwen3_5"),
        arguments="archon_models_qwen.hybrid_arguments:Qwen35Arguments",
        weight_map="archon_models_qwen.hybrid_weight_map:weight_map",
        parallel_plan="archon_models_qwen.parallel_plan:hybrid_parallel_plan",
        tiny_config="archon_models_qwen.tiny_config:tiny_qwen3_5",
        anatomy=HYBRID_ANATOMY,
        # No "tree": a recurrent state is that of one sequence, so it cannot be continued by several.
        capabilities=CAPABILITIES,
    )
    hybrid_with_experts = ModelSpec(
        name="qwen3_5_moe",
        target="archon_models_qwen.hybrid_decoder:Qwen35MoEDecoder",
        summary="Qwen3.5 and Qwen3.6 with mixture-of-experts layers, text",
        model_types=("qwen3_5_moe_text", "qwen3_5_moe"),
        arguments="archon_models_qwen.hybrid_arguments:Qwen35MoEArguments",
        weight_map="archon_models_qwen.hybrid_weight_map:moe_weight_map",
        parallel_plan="archon_models_qwen.parallel_plan:hybrid_moe_parallel_plan",
        tiny_config="archon_models_qwen.tiny_config:tiny_qwen3_5_moe",
        anatomy=HYBRID_ANATOMY,
        # transformers has no sequence-classification model of this type, so a critic could not be saved.
        capabilities=(CAPABILITIES | {"ep"}) - {"critic"},
        needs=("moe",),
    )
    return [*dense, with_experts, hybrid, hybrid_with_experts]
