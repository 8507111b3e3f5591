"""Device meshes of an engine, from the sizes of its axes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from archon_core.distributed.process_group import device_backends
from archon_core.distributed.ranks import DataRanks, Ranks
from archon_core.errors import LayoutError
from archon_core.layout import ParallelDims


@dataclass(frozen=True)
class Meshes:
    """The meshes over which a model is sharded.

    Attributes:
        dims: sizes of the axes.
        dense: root mesh of dense parameters, with the axes ``dp_shard`` and ``tp``.
    """

    dims: ParallelDims
    dense: DeviceMesh

    @property
    def fsdp(self) -> DeviceMesh:
        """Where FSDP shards dense parameters."""
        return self.dense["dp_shard"]

    @property
    def tp(self) -> DeviceMesh | None:
        """Tensor ranks; ``None`` without tensor parallelism."""
        return self.dense["tp"] if self.dims.tp > 1 else None


def build_meshes(dims: ParallelDims, device_type: str, *, option: str) -> Meshes:
    """Make the process groups of ``dims``. Every process of the run must call it.

    A single process without a process group gets one of its own.

    Args:
        option: where the layout is written, for the message.

    Raises:
        LayoutError: another number of processes runs than the layout needs.
    """
    if not dist.is_initialized() and dims.world_size == 1:
        dist.init_process_group(device_backends(), store=dist.HashStore(), rank=0, world_size=1)
    check_world(dims, option=option)
    names = ("dp_shard", "tp") if dims.tp > 1 else ("dp_shard",)
    sizes = tuple(getattr(dims, name) for name in names)
    return Meshes(dims, init_device_mesh(device_type, sizes, mesh_dim_names=names))


def check_world(dims: ParallelDims, *, option: str) -> None:
    """Raise LayoutError unless as many processes run as the layout needs."""
    running = dist.get_world_size() if dist.is_initialized() else 1
    if running != dims.world_size:
        raise LayoutError(
            f"{option}: found {running} running process{'es' if running > 1 else ''}, the layout needs "
            f"{dims.world_size} ({dims.describe()}); start as many (`archon train` does, or torchrun), or write a "
            f"layout of {running}"
        )


def data_ranks(dims: ParallelDims) -> DataRanks:
    """Which sequences are this process's: one share per dp_replicate x dp_shard place."""
    if dims.world_size == 1:
        return DataRanks()
    everyone = Ranks.of_process_group()
    place = dims.dense_grid.coordinates(everyone.rank)
    first_of_each = {"pp": 0, "cp": 0, "tp": 0}
    members = tuple(
        dims.dense_grid.rank({"dp_replicate": replica, "dp_shard": shard, **first_of_each})
        for replica in range(dims.dp_replicate)
        for shard in range(dims.dp_shard)
    )
    return DataRanks(place["dp_replicate"] * dims.dp_shard + place["dp_shard"], len(members), everyone, members)


def device_of_rank() -> torch.device:
    """This process's device: its CUDA device where there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
