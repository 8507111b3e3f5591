"""One rank of a large world, sharded by the engine's own code, without the other ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

# Private, as is the state of FSDP2 below: no public process group exists without other processes (2.11 to 2.13).
from torch.testing._internal.distributed.fake_pg import FakeStore

from archon_core import registry
from archon_core.layout.dims import ParallelDims
from archon_core.models.anatomy import ModelAnatomy
from archon_core.models.name_pattern import matches_any
from archon_core.models.stage import Stage
from archon_engine.mesh import build_meshes
from archon_engine.models.hf_config import load_hf_config
from archon_engine.parallel.activation_checkpointing import apply_full_checkpointing
from archon_engine.parallel.fsdp import FsdpGroups, apply_fsdp
from archon_engine.parallel.tensor import apply_tensor_parallel


@contextmanager
def fake_rank(rank: int, world_size: int) -> Iterator[None]:
    """A process group of ``world_size`` in which this process is ``rank``; collectives return at once."""
    if dist.is_initialized():
        dist.destroy_process_group()  # of an engine of an earlier test in this process
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def anatomy_of(entries: Mapping[str, Any], *, model: str | None = None, critic: bool = False) -> ModelAnatomy:
    """The anatomy by the spec that serves ``entries``."""
    return _spec(model or entries["model_type"]).load_part("anatomy")(entries, critic=critic)


@dataclass(frozen=True)
class Sharded:
    """A stage on one rank.

    Attributes:
        module: on the meta device.
        groups: its FSDP2 groups.
    """

    module: nn.Module
    groups: FsdpGroups

    @property
    def param_groups(self) -> list[Any]:
        """FSDP2's groups of parameters, each once."""
        states = {
            id(state): state
            for part in self.module.modules()
            if isinstance(part, FSDPModule)
            for state in [part._get_fsdp_state()]
        }
        return [group for state in states.values() for group in state._fsdp_param_groups]

    @property
    def elements(self) -> int:
        """Elements of this rank's parameters."""
        return sum(p.sharded_param.to_local().numel() for group in self.param_groups for p in group.fsdp_params)

    @property
    def stored(self) -> int:
        """Elements of their storage, padding included."""
        return sum(p._sharded_param_data.numel() for group in self.param_groups for p in group.fsdp_params)


def shard_stages(
    entries: Mapping[str, Any],
    dims: ParallelDims,
    stages: Sequence[Stage | None] = (None,),
    *,
    model: str | None = None,
    critic: bool = False,
    recompute: bool = False,
    reshard: bool = True,
    reshard_last: bool = False,
    grouped: bool | None = None,
) -> list[Sharded]:
    """Build stages on the meta device and shard them as ``archon_engine.assembly`` does, for the running rank.

    Args:
        entries: the content of a ``config.json``.
        dims: the sizes of the axes.
        stages: which stages; ``None`` for the whole model.
        model: name of the spec; ``None`` for the one named like the family.
        critic: whether the model has a value head.
        recompute: checkpoint all blocks.
        reshard: free weights between forward and backward.
        reshard_last: also those of the last units.
        grouped: run experts as ``grouped_mm``; ``None`` for what is available.
    """
    loaded = _spec(model or entries["model_type"]).load()
    arguments = loaded.arguments.from_hf_config(load_hf_config(dict(entries)), critic=critic)
    builder = (
        registry().get("moe", "moe").load()(SimpleNamespace(moe_grouped_gemm=grouped)) if loaded.has_experts else None
    )
    plan = loaded.parallel_plan(arguments)
    meshes = build_meshes(dims, "cpu", experts=loaded.has_experts)
    found = []
    for stage in stages:
        with torch.device("meta"):
            module = loaded.build(arguments, stage, experts=builder)
        if meshes.tp is not None:
            apply_tensor_parallel(module, plan, meshes.tp)
        if meshes.experts is not None:
            for name, block in module.named_modules():
                if matches_any(plan.experts, name):
                    builder.shard(block, meshes.experts.place)
        if recompute:
            apply_full_checkpointing(module, plan)
        groups = apply_fsdp(
            module,
            plan,
            meshes.fsdp,
            compute_dtype=torch.bfloat16,
            reduce_dtype=torch.float32,
            reshard_after_forward=reshard,
            reshard_last=reshard_last,
            expert_mesh=None if meshes.experts is None else meshes.experts.fsdp,
        )
        found.append(Sharded(module, groups))
    return found


def _spec(name: str) -> Any:
    return registry().get("model", name)
