"""What the modules of the DeepSeek decoder are to tensor, context, expert and pipeline parallelism."""

from __future__ import annotations

from collections.abc import Mapping

from archon_core.models.parallel_plan import HeadCounts, ParallelPlan, Role
from archon_models_deepseek.arguments import DeepseekArguments

_LOW_RANK_QUERIES: Mapping[str, Role] = {
    "layers.{layer}.attention.q_a_proj": "replicated",
    "layers.{layer}.attention.q_a_norm": "replicated",
    "layers.{layer}.attention.q_b_proj": "column",
}
_QUERIES: Mapping[str, Role] = {"layers.{layer}.attention.q_proj": "column"}
_MLP: Mapping[str, Role] = {
    "layers.{layer}.mlp.gate_proj": "column",
    "layers.{layer}.mlp.up_proj": "column",
    "layers.{layer}.mlp.down_proj": "row",
}
_SHARED: Mapping[str, Role] = {"layers.{layer}.moe.shared.{projection}": "sequence"}


def parallel_plan(arguments: DeepseekArguments) -> ParallelPlan:
    """The plan for a model of these arguments. Tensor ranks share the tokens of expert blocks, so these are no
    regions."""
    has_mlp = arguments.n_dense_layers > 0
    n_heads = arguments.attention.n_heads
    return ParallelPlan(
        roles={
            "embed": "vocabulary",
            **(_QUERIES if arguments.attention.query_rank is None else _LOW_RANK_QUERIES),
            "layers.{layer}.attention.kv_a_proj": "replicated",
            "layers.{layer}.attention.kv_a_norm": "replicated",
            "layers.{layer}.attention.kv_b_proj": "column",
            "layers.{layer}.attention.o_proj": "row",
            "layers.{layer}.attention_norm": "sequence",
            "layers.{layer}.mlp_norm": "sequence",
            **(_MLP if has_mlp else {}),
            "layers.{layer}.moe.router": "sequence",
            "layers.{layer}.moe.experts": "expert",
            **(_SHARED if arguments.moe.shared_intermediate_size else {}),
            "norm": "sequence",
            # A value head has one row: nothing to shard, so it works on each rank's own tokens as a norm does.
            "head": "sequence" if arguments.critic else "vocabulary",
        },
        tensor_regions=("layers.{layer}.attention", *(("layers.{layer}.mlp",) if has_mlp else ())),
        experts=("layers.{layer}.moe",),
        attention=("layers.{layer}.attention.core",),
        heads=HeadCounts(query=n_heads, key_value=n_heads),
    )
