"""What the modules of the GLM decoder are to tensor, context, expert and pipeline parallelism."""

from __future__ import annotations

from collections.abc import Mapping

from archon_core.models.parallel_plan import HeadCounts, ParallelPlan, Role
from archon_models_glm.arguments import GlmArguments

_MLP: Mapping[str, Role] = {
    "layers.{layer}.mlp.gate_proj": "column",
    "layers.{layer}.mlp.up_proj": "column",
    "layers.{layer}.mlp.down_proj": "row",
}
_HEAD_NORMS: Mapping[str, Role] = {
    "layers.{layer}.attention.q_norm": "head_norm",
    "layers.{layer}.attention.k_norm": "head_norm",
}
_SHARED: Mapping[str, Role] = {"layers.{layer}.moe.shared.{projection}": "sequence"}


def parallel_plan(arguments: GlmArguments) -> ParallelPlan:
    """The plan for a model of these arguments. Tensor ranks share the tokens of expert blocks, so these are no
    regions."""
    has_mlp = arguments.n_dense_layers > 0
    return ParallelPlan(
        roles={
            "embed": "vocabulary",
            "layers.{layer}.attention.q_proj": "column",
            "layers.{layer}.attention.k_proj": "column",
            "layers.{layer}.attention.v_proj": "column",
            "layers.{layer}.attention.o_proj": "row",
            **(_HEAD_NORMS if arguments.qk_norm else {}),
            "layers.{layer}.attention_norm": "sequence",
            "layers.{layer}.mlp_norm": "sequence",
            **(_MLP if has_mlp else {}),
            "layers.{layer}.moe.router": "sequence",
            "layers.{layer}.moe.experts": "expert",
            **(_SHARED if arguments.moe.shared_intermediate_size else {}),
            "norm": "sequence",
            "head": "vocabulary",
        },
        tensor_regions=("layers.{layer}.attention", *(("layers.{layer}.mlp",) if has_mlp else ())),
        experts=("layers.{layer}.moe",),
        key_value=("layers.{layer}.attention.k_proj", "layers.{layer}.attention.v_proj"),
        attention=("layers.{layer}.attention.core",),
        heads=HeadCounts(query=arguments.n_heads, key_value=arguments.n_kv_heads),
    )
