"""What the modules of the Qwen decoder are to tensor, context and pipeline parallelism."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from archon_core.models.parallel_plan import HeadCounts, ParallelPlan, Role
from archon_models_qwen.arguments import QwenArguments
from archon_models_qwen.hybrid_arguments import Qwen35Arguments, Qwen35MoEArguments
from archon_models_qwen.moe_arguments import QwenMoEArguments

_MLP: Mapping[str, Role] = {
    "layers.{layer}.mlp.gate_proj": "column",
    "layers.{layer}.mlp.up_proj": "column",
    "layers.{layer}.mlp.down_proj": "row",
}


def parallel_plan(arguments: QwenArguments) -> ParallelPlan:
    """The plan for a dense model of these arguments."""
    return _plan(arguments, has_mlp=True)


def moe_parallel_plan(arguments: QwenMoEArguments) -> ParallelPlan:
    """The plan for a model with experts. Tensor ranks share the tokens of their blocks, so these are no regions."""
    plan = _plan(arguments, has_mlp=not all(arguments.sparse))
    roles: dict[str, Role] = {"layers.{layer}.moe.router": "sequence", "layers.{layer}.moe.experts": "expert"}
    return replace(plan, roles={**plan.roles, **roles}, experts=("layers.{layer}.moe",))


def hybrid_parallel_plan(arguments: Qwen35Arguments) -> ParallelPlan:
    """The plan for a dense model with Gated DeltaNet layers."""
    return _with_delta_net(_plan(arguments, has_mlp=True), arguments)


def hybrid_moe_parallel_plan(arguments: Qwen35MoEArguments) -> ParallelPlan:
    """The plan for a model with Gated DeltaNet layers and experts. The shared expert sees each rank's own tokens."""
    plan = _with_delta_net(_plan(arguments, has_mlp=False), arguments)
    roles: dict[str, Role] = {
        "layers.{layer}.moe.router": "sequence",
        "layers.{layer}.moe.experts": "expert",
        "layers.{layer}.moe.shared.{projection}": "sequence",
        "layers.{layer}.moe.shared_gate": "sequence",
    }
    return replace(plan, roles={**plan.roles, **roles}, experts=("layers.{layer}.moe",))


def _with_delta_net(plan: ParallelPlan, arguments: Qwen35Arguments) -> ParallelPlan:
    """Add the roles of Gated DeltaNet layers, and leave out those of attention if no layer has any."""
    if not any(arguments.linear):
        return plan
    if all(arguments.linear):
        kept = {name: role for name, role in plan.roles.items() if ".attention." not in name}
        regions = tuple(region for region in plan.tensor_regions if not region.endswith(".attention"))
        plan = replace(plan, roles=kept, tensor_regions=regions, key_value=(), attention=(), heads=None)
    region = "layers.{layer}.delta"
    columns = ("query_proj", "key_proj", "value_proj", "output_gate_proj", "beta_proj", "decay_proj")
    owners = (*columns, "query_filters", "key_filters", "value_filters", "decay")
    roles: dict[str, Role] = {f"{region}.{owner}": "column" for owner in owners}
    roles |= {f"{region}.norm": "head_norm", f"{region}.out_proj": "row"}
    return replace(
        plan,
        roles={**plan.roles, **roles},
        tensor_regions=(*plan.tensor_regions, region),
        attention=(*plan.attention, f"{region}.core"),
        other_heads={"key heads of Gated DeltaNet": arguments.delta.n_key_heads},
    )


def _plan(arguments: QwenArguments, *, has_mlp: bool) -> ParallelPlan:
    roles: dict[str, Role] = {
        "embed": "vocabulary",
        "layers.{layer}.attention.q_proj": "column",
        "layers.{layer}.attention.k_proj": "column",
        "layers.{layer}.attention.v_proj": "column",
        "layers.{layer}.attention.o_proj": "row",
        "layers.{layer}.attention_norm": "sequence",
        "layers.{layer}.mlp_norm": "sequence",
        "norm": "sequence",
        # A value head has one row: nothing to shard, so it works on each rank's own tokens as a norm does.
        "head": "sequence" if arguments.critic else "vocabulary",
    }
    if arguments.qk_norm:
        roles |= {"layers.{layer}.attention.q_norm": "head_norm", "layers.{layer}.attention.k_norm": "head_norm"}
    return ParallelPlan(
        roles={**roles, **_MLP} if has_mlp else roles,
        tensor_regions=("layers.{layer}.attention", *(("layers.{layer}.mlp",) if has_mlp else ())),
        key_value=("layers.{layer}.attention.k_proj", "layers.{layer}.attention.v_proj"),
        attention=("layers.{layer}.attention.core",),
        heads=HeadCounts(query=arguments.n_heads, key_value=arguments.n_kv_heads),
    )
