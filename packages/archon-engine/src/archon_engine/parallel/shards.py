"""Computes the box of a parameter on each process from its placements: pure arithmetic, equal on every process."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Placement

from archon_core.models.box import Box, Shape, chunk_of
from archon_engine.compat import strided_shard_dim


@dataclass(frozen=True)
class Cut:
    """The sharding of a tensor along one axis of its mesh.

    Attributes:
        size: ranks along the axis.
        dim: the sharded tensor dim; ``None`` if the axis holds copies.
        late: whether the axis shards after later axes of the mesh, as FSDP2 shards tensor-parallel parts.
    """

    size: int
    dim: int | None
    late: bool = False


def shard_box(shape: Shape, cuts: Iterable[Cut], places: Iterable[int]) -> Box:
    """The box of a tensor of ``shape`` on the rank at ``places``, its coordinates along the axes. It may be empty.

    Each axis divides a dim as ``chunk_of`` does.
    """
    box = Box.whole(shape)
    axes = list(zip(cuts, places, strict=True))
    for cut, place in (*(axis for axis in axes if not axis[0].late), *(axis for axis in axes if axis[0].late)):
        if cut.dim is not None:
            part = chunk_of(box.shape[cut.dim], cut.size, place)
            start, sizes = list(box.start), list(box.shape)
            start[cut.dim] += part.start
            sizes[cut.dim] = len(part)
            box = Box(tuple(start), tuple(sizes))
    return box


def cuts_of(tensor: DTensor) -> list[Cut]:
    """The cuts along the axes of the tensor's mesh, outermost first."""
    sizes = tensor.device_mesh.shape
    return [_cut(size, placement) for size, placement in zip(sizes, tensor.placements, strict=True)]


def own_box(tensor: DTensor) -> Box:
    """The box that this process holds."""
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None, "this process is not in the tensor's mesh"
    return shard_box(tuple(tensor.shape), cuts_of(tensor), coordinate)


def box_of_each_rank(tensor: DTensor) -> dict[int, Box]:
    """Global rank -> the box that it holds, copies included, for all ranks of the tensor's mesh."""
    mesh, cuts, shape = tensor.device_mesh, cuts_of(tensor), tuple(tensor.shape)
    places = itertools.product(*(range(size) for size in mesh.shape))
    return {int(mesh.mesh[place]): shard_box(shape, cuts, place) for place in places}


def holders(tensor: DTensor) -> dict[int, Box]:
    """Global rank -> box, for one rank per non-empty part. Together these boxes cover the tensor once."""
    first = {box: rank for rank, box in reversed(box_of_each_rank(tensor).items()) if box.numel}
    return {rank: box for box, rank in reversed(first.items())}


def local_values(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, detached and sharing its storage; all of a plain tensor."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_part(weight: Tensor) -> tuple[Tensor, Box]:
    """This process's storage of a weight, and the box of the whole that it holds; all of a plain tensor."""
    if not isinstance(weight, DTensor):
        return weight.detach(), Box.whole(tuple(weight.shape))
    local, box = local_values(weight), own_box(weight)
    assert tuple(local.shape) == box.shape, f"storage of {tuple(local.shape)} for a box of {box.shape}"
    return local, box


def whole_values(tensor: Tensor) -> Tensor:
    """A copy of a whole tensor, on every rank. Collective over the mesh of a DTensor.

    ``DTensor.full_tensor`` is correct for equal parts only. If FSDP2 shards unequal parts of tensor ranks, torch 2.13
    puts them into wrong rows.
    """
    if not isinstance(tensor, DTensor):
        return tensor.detach().clone()
    mesh, (values, box) = tensor.device_mesh, local_part(tensor)
    whole = values.new_zeros(tensor.shape)
    if mesh.get_rank() in holders(tensor):
        whole[box.slices] = values
    for axis in range(mesh.ndim):
        dist.all_reduce(whole, group=mesh.get_group(axis))  # every other rank adds 0
    return whole


def _cut(size: int, placement: Placement) -> Cut:
    dim = strided_shard_dim(placement)
    if dim is not None:
        return Cut(size, dim, late=True)
    if placement.is_replicate():
        return Cut(size, None)
    assert placement.is_shard(), f"a weight is sharded or replicated, found {placement}"
    return Cut(size, placement.dim)
