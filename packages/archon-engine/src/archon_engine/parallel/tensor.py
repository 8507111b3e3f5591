"""Tensor parallelism with sequence parallelism, applied to any module that has a parallel plan.

Parameters become DTensors over the ``tp`` axis. Layers that declare ``parallel`` receive this rank's place in the
group. Tensor regions get a hook before, which gathers tokens, and one after, which scatters the sum. Between regions
each of t ranks holds T / t tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from archon_core.contracts.module import RowProjection, TensorParallelLayer
from archon_core.models.box import chunk_of
from archon_core.models.name_pattern import matches_any
from archon_core.models.parallel_plan import ParallelPlan, Role
from archon_engine.nn.key_heads import HeadExchange, needs_exchange
from archon_engine.nn.tensor_parallel import TensorParallel
from archon_engine.parallel.shards import local_values

SHARDED_DIM: dict[tuple[Role, str], int] = {
    ("vocabulary", "weight"): 0,
    ("column", "weight"): 0,
    ("column", "bias"): 0,
    ("row", "weight"): 1,
}
"""(role, parameter) -> the sharded dim; all other parameters are replicated."""

_TOKENS = "hidden_states"
"""The keyword argument in which a region of another library's module may take its tokens."""


def apply_tensor_parallel(module: nn.Module, plan: ParallelPlan, mesh: DeviceMesh) -> None:
    """Shard ``module``, a model or a stage on the meta device, in place.

    Args:
        plan: the roles of its modules, as checked by ``plan_checks.check_tensor_plan`` for the whole model.
        mesh: the one-dimensional mesh of the tensor ranks.
    """
    parallel = TensorParallel(mesh.get_group(), mesh.get_local_rank(), mesh.size())
    sharded: dict[nn.Parameter, nn.Parameter] = {}
    for name, owner in module.named_modules():
        own = dict(owner.named_parameters(recurse=False, remove_duplicate=False))
        if not own:
            continue
        role = plan.role_of(name)
        if role == "expert":
            continue  # experts are sharded over other axes
        for attribute, parameter in own.items():
            # A tied parameter stays one parameter, so that its gradients accumulate in one tensor.
            if parameter not in sharded:
                sharded[parameter] = _distribute(parameter, _placement(role, attribute), mesh)
            setattr(owner, attribute, sharded[parameter])
        if role == "row" and isinstance(owner, RowProjection):
            owner.adds_bias = parallel.rank == 0
        if isinstance(owner, TensorParallelLayer):
            owner.parallel = parallel
    for name, block in module.named_modules():
        if matches_any(plan.experts, name) and isinstance(block, TensorParallelLayer):
            block.parallel = parallel
    _exchange_key_heads(module, plan, parallel)
    for name, region in module.named_modules():
        if matches_any(plan.tensor_regions, name):
            region.parallel = parallel
            if plan.batched:
                region.register_forward_pre_hook(_gather_batched_tokens, with_kwargs=True)
                region.register_forward_hook(_scatter_batched_sum)
            else:
                region.register_forward_pre_hook(_gather_tokens)
                region.register_forward_hook(_scatter_sum)


def _exchange_key_heads(module: nn.Module, plan: ParallelPlan, parallel: TensorParallel) -> None:
    if plan.heads is None or not needs_exchange(plan.heads.key_value, parallel.size):
        return
    for name, part in module.named_modules():
        if matches_any(plan.key_value, name):
            exchange = HeadExchange.plan(
                part.weight.shape[0],
                plan.heads.key_value,
                group=parallel.group,
                rank=parallel.rank,
                size=parallel.size,
            )
            part.register_forward_hook(partial(_exchange_heads, exchange))


def shard_sequences(module: nn.Module, enabled: bool) -> None:
    """Switch sequence sharding of all layers on or off. It must be on while gradients are computed."""
    for part in module.modules():
        if isinstance(part, TensorParallelLayer) and isinstance(part.parallel, TensorParallel):
            part.parallel = replace(part.parallel, sequence_sharded=enabled)


@torch.no_grad()
def sum_replicated_gradients(parameters: Iterable[nn.Parameter], mesh: DeviceMesh) -> None:
    """Sum the gradients of parameters that are replicated over tensor ranks, in place. Each rank has the gradient of
    its tokens or heads; of an adapter of experts, that of its part of the intermediate size.

    Collective over ``mesh``, the tensor ranks or the expert tensor ranks. Call it once per step, after FSDP2 has
    reduced over the other ranks. It makes one exchange in at least fp32. With ``Partial`` gradients FSDP2 would sum by
    itself, but one parameter at a time, after every micro-batch and in the compute dtype: it redistributes a gradient
    before casting it to the reduce dtype (torch 2.11 to 2.13).
    """
    axis = mesh.mesh_dim_names[0]
    gradients = [local_values(p.grad) for p in parameters if p.grad is not None and _is_replicated(p, axis)]
    if not gradients:
        return
    dtype = reduce(torch.promote_types, (gradient.dtype for gradient in gradients), torch.float32)
    flat = torch.cat([gradient.reshape(-1).to(dtype) for gradient in gradients])
    dist.all_reduce(flat, group=mesh.get_group())
    sums = flat.split([gradient.numel() for gradient in gradients])
    for gradient, total in zip(gradients, sums, strict=True):
        gradient.copy_(total.view(gradient.shape))


def _is_replicated(parameter: nn.Parameter, axis: str) -> bool:
    """Whether every rank along ``axis`` holds a copy. Meshes of experts and of other weights have different axes."""
    if not isinstance(parameter, DTensor) or axis not in (parameter.device_mesh.mesh_dim_names or ()):
        return False
    return parameter.placements[parameter.device_mesh.mesh_dim_names.index(axis)].is_replicate()


def _placement(role: Role, attribute: str) -> Placement:
    dim = SHARDED_DIM.get((role, attribute))
    return Replicate() if dim is None else Shard(dim)


def _distribute(parameter: nn.Parameter, placement: Placement, mesh: DeviceMesh) -> nn.Parameter:
    """A DTensor on the meta device with the shape of the whole parameter; only this rank's part gets storage."""
    assert parameter.is_meta, "sharding comes before weights"
    shape = list(parameter.shape)
    if isinstance(placement, Shard):
        shape[placement.dim] = len(chunk_of(shape[placement.dim], mesh.size(), mesh.get_local_rank()))
    local = torch.empty(shape, dtype=parameter.dtype, device="meta")
    # Parts may differ in size, so DTensor cannot infer the whole shape from this one.
    sharded = DTensor.from_local(
        local, mesh, [placement], run_check=False, shape=parameter.shape, stride=parameter.stride()
    )
    return nn.Parameter(sharded, requires_grad=parameter.requires_grad)


def _exchange_heads(exchange: HeadExchange, projection: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return exchange.apply(output)


def _gather_tokens(region: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    x, *rest = args
    return (region.parallel.gather_tokens(x), *rest)


def _scatter_sum(region: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return region.parallel.scatter_sum(output)


def _gather_batched_tokens(
    region: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def gathered(x: Tensor) -> Tensor:
        return region.parallel.gather_tokens(x.squeeze(0)).unsqueeze(0)

    if args:
        return (gathered(args[0]), *args[1:]), kwargs
    return args, {**kwargs, _TOKENS: gathered(kwargs[_TOKENS])}


def _scatter_batched_sum(region: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    if isinstance(output, tuple):
        x, *rest = output
        return (region.parallel.scatter_sum(x.squeeze(0)).unsqueeze(0), *rest)
    return region.parallel.scatter_sum(output.squeeze(0)).unsqueeze(0)
