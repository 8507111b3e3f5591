"""What the modules of the gpt-oss decoder are to tensor, context, expert and pipeline parallelism."""

from __future__ import annotations

from archon_core.models.parallel_plan import HeadCounts, ParallelPlan
from archon_models_gpt_oss.arguments import GptOssArguments


def parallel_plan(arguments: GptOssArguments) -> ParallelPlan:
    """The plan for a model of these arguments. Tensor ranks share the tokens of expert blocks, so these are no
    regions."""
    return ParallelPlan(
        roles={
            "embed": "vocabulary",
            "layers.{layer}.attention.q_proj": "column",
            "layers.{layer}.attention.k_proj": "column",
            "layers.{layer}.attention.v_proj": "column",
            "layers.{layer}.attention.o_proj": "row",
            "layers.{layer}.attention.sinks": "column",
            "layers.{layer}.attention_norm": "sequence",
            "layers.{layer}.mlp_norm": "sequence",
            "layers.{layer}.moe.router": "sequence",
            "layers.{layer}.moe.experts": "expert",
            "norm": "sequence",
            # A value head has one row: nothing to shard, so it works on each rank's own tokens as a norm does.
            "head": "sequence" if arguments.critic else "vocabulary",
        },
        tensor_regions=("layers.{layer}.attention",),
        experts=("layers.{layer}.moe",),
        key_value=("layers.{layer}.attention.k_proj", "layers.{layer}.attention.v_proj"),
        attention=("layers.{layer}.attention.core",),
        heads=HeadCounts(query=arguments.n_heads, key_value=arguments.n_kv_heads),
    )
