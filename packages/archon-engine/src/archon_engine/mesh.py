"""Builds the device meshes of an engine from the sizes of its axes.

``ParallelDims.dense_grid`` numbers the ranks, tensor ranks innermost. Every mesh here has this order, folded into fewer
axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from archon_core.contracts.moe import ExpertParallel
from archon_core.errors import LayoutError
from archon_core.layout import ParallelDims
from archon_core.ranks.ranks import DataRanks, Ranks
from archon_engine.nn.key_gathering import KeyGathering
from archon_engine.nn.ulysses import ContextParallel
from archon_engine.options.context_style import ContextSplit

PIPELINE, REPLICATE, SHARD, TENSOR = "pp", "dp_replicate", "dp_shard_cp", "tp"
"""Axes of the mesh of dense parameters. Context ranks hold different tokens, so they shard parameters like data ranks.
No parameter is placed along the first axis, because pipeline ranks hold different parameters."""


@dataclass(frozen=True)
class ExpertMeshes:
    """The meshes of expert parameters, submeshes of one root.

    Attributes:
        fsdp: the mesh over which FSDP shards them: the axis ``edp``, preceded by a replicating axis if there is one.
        place: this rank's place among the ranks that share a block's experts.
    """

    fsdp: DeviceMesh
    place: ExpertParallel


@dataclass(frozen=True)
class Meshes:
    """The meshes over which a model is sharded.

    Attributes:
        dims: sizes of the axes.
        dense: root mesh of dense parameters, with the axes ``PIPELINE``, ``REPLICATE``, ``SHARD``, ``TENSOR``. Only
            ``SHARD`` always exists.
        context: this rank's place among its context ranks; ``None`` without context parallelism.
        experts: the meshes of expert parameters; ``None`` for a model without experts.
        holders: the processes that hold the same stages as this one; ``None`` for all processes.
    """

    dims: ParallelDims
    dense: DeviceMesh
    context: ContextParallel | None = None
    experts: ExpertMeshes | None = None
    holders: dist.ProcessGroup | None = None

    @property
    def fsdp(self) -> DeviceMesh:
        """The mesh over which FSDP shards dense parameters: one axis, preceded by a replicating axis if there is
        one."""
        return self.dense[REPLICATE, SHARD] if self.dims.dp_replicate > 1 else self.dense[SHARD]

    @property
    def tp(self) -> DeviceMesh | None:
        """The tensor ranks; ``None`` without tensor parallelism."""
        return self.dense[TENSOR] if self.dims.tp > 1 else None

    @property
    def copying(self) -> list[DeviceMesh]:
        """The axes whose ranks compute different parts of the gradients of the parameters that all of them hold."""
        experts = None if self.experts is None else self.experts.place
        return [
            *([] if self.tp is None else [self.tp]),
            *([experts.mesh["etp"]] if experts is not None and experts.etp > 1 else []),
        ]

    @property
    def pipeline(self) -> dist.ProcessGroup | None:
        """The processes of this pipeline, which process the same tokens, in stage order; ``None`` without a
        pipeline."""
        return self.dense.get_group(PIPELINE) if self.dims.pp > 1 else None

    @property
    def pipeline_rank(self) -> int:
        """This process's rank in its pipeline."""
        return self.dense.get_local_rank(PIPELINE) if self.dims.pp > 1 else 0


def build_meshes(
    dims: ParallelDims,
    device_type: str,
    *,
    experts: bool = False,
    context: ContextSplit | None = None,
    in_order: bool = False,
) -> Meshes:
    """Arrange the running processes along the axes of ``dims``. Collective over all of them.

    The process group must exist, with the number of processes that ``check_world`` requires.

    Args:
        dims: sizes of the axes.
        device_type: ``cpu`` or ``cuda``.
        experts: whether the model has experts, which need separate meshes.
        context: how context ranks share attention; ``None`` for the exchange of heads.
        in_order: whether context ranks hold parts of a pack in its order.
    """
    assert dist.is_initialized(), "a process group comes before meshes"
    if device_type == "cuda":
        torch.cuda.init()  # otherwise DeviceMesh warns that it guesses this process's device
    sizes = {PIPELINE: dims.pp, REPLICATE: dims.dp_replicate, SHARD: dims.dp_shard * dims.cp, TENSOR: dims.tp}
    axes = {name: size for name, size in sizes.items() if size > 1 or name == SHARD}
    dense = init_device_mesh(device_type, tuple(axes.values()), mesh_dim_names=tuple(axes))
    return Meshes(
        dims,
        dense,
        _context(dims, device_type, context or ContextSplit(heads=dims.cp), in_order),
        _experts(dims, device_type) if experts else None,
        _holders(dims, device_type),
    )


def _experts(dims: ParallelDims, device_type: str) -> ExpertMeshes:
    sizes = {"pp": dims.pp, REPLICATE: dims.dp_replicate, "edp": dims.edp, "ep": dims.ep, "etp": dims.etp}
    always = ("edp", "ep", "etp")
    axes = {name: size for name, size in sizes.items() if size > 1 or name in always}
    root = init_device_mesh(device_type, tuple(axes.values()), mesh_dim_names=tuple(axes))
    share = dims.ep * dims.etp
    flat = init_device_mesh(device_type, (dims.world_size // share, share), mesh_dim_names=("other", "share"))
    fsdp = root[REPLICATE, "edp"] if dims.dp_replicate > 1 else root["edp"]
    return ExpertMeshes(fsdp, ExpertParallel(root["ep", "etp"], flat.get_group("share")))


def _holders(dims: ParallelDims, device_type: str) -> dist.ProcessGroup | None:
    if dims.pp == 1:
        return None
    return init_device_mesh(device_type, (dims.pp, dims.stage_size), mesh_dim_names=("pp", "stage")).get_group("stage")


def _context(dims: ParallelDims, device_type: str, split: ContextSplit, in_order: bool) -> ContextParallel | None:
    if dims.cp == 1:
        return None
    data = dims.pp * dims.dp_replicate * dims.dp_shard
    root = init_device_mesh(device_type, (data, dims.cp, dims.tp), mesh_dim_names=("data", "cp", "tp"))
    whole = _context_axis(root, "cp")
    if split.groups == 1:
        return whole
    across, within = whole, None
    if split.heads > 1:
        # Neighbours exchange heads: their ranks are as close as tensor ranks allow.
        sizes = (data, split.groups, split.heads, dims.tp)
        parts = init_device_mesh(device_type, sizes, mesh_dim_names=("data", "across", "within", "tp"))
        across, within = _context_axis(parts, "across"), _context_axis(parts, "within")
    return KeyGathering(whole.group, whole.rank, whole.size, across, within, in_order)


def _context_axis(mesh: DeviceMesh, axis: str) -> ContextParallel:
    return ContextParallel(mesh.get_group(axis), mesh.get_local_rank(axis), mesh[axis].size())


def check_world(dims: ParallelDims, *, option: str) -> None:
    """Raise LayoutError unless the number of running processes fits the layout."""
    running = dist.get_world_size() if dist.is_initialized() else 1
    if running != dims.world_size:
        raise LayoutError(
            f"{option}: found {running} running process{'es' if running > 1 else ''}, the layout needs "
            f"{dims.world_size} ({dims.describe()}); start {dims.world_size} with `archon train` or torchrun, or write "
            f"a layout of {running}"
        )


def data_ranks(dims: ParallelDims, *, losses_on: int = 0) -> DataRanks:
    """The data ranks: one per place along dp_replicate x dp_shard.

    Args:
        losses_on: the pipeline rank that computes losses in training, and represents its pipeline.
    """
    if dims.world_size == 1:
        return DataRanks()
    everyone = Ranks.of_process_group()
    place = dims.dense_grid.coordinates(everyone.rank)
    first_of_each = {"pp": losses_on, "cp": 0, "tp": 0}
    members = tuple(
        dims.dense_grid.rank({"dp_replicate": replica, "dp_shard": shard, **first_of_each})
        for replica in range(dims.dp_replicate)
        for shard in range(dims.dp_shard)
    )
    return DataRanks(place["dp_replicate"] * dims.dp_shard + place["dp_shard"], len(members), everyone, members)


def device_of_rank() -> torch.device:
    """This process's CUDA device; the CPU without CUDA."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
