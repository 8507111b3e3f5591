"""The global gradient norm: counts every logical element of every parameter once, however it is sharded.

The placements of a gradient tell which ranks hold different parts and which hold copies. So there is no list of axes to
keep up to date; forgetting an axis in such a list would silently change clipping.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from archon_engine.parallel.shards import local_values


def global_gradient_norm(parameters: Iterable[nn.Parameter], pipeline: dist.ProcessGroup | None = None) -> Tensor:
    """L2 norm over all gradients, a scalar in at least fp32, the same on every rank.

    Parameters without a gradient count as zero. Collective over every axis along which some gradient is sharded, and
    over the pipeline.

    Args:
        parameters: parameters of this process, without tied copies.
        pipeline: processes that hold other parameters; ``None`` without a pipeline.
    """
    norm = _norm_here(list(parameters))
    if pipeline is None:
        return norm
    # Float64 on all ranks: dtypes must match, and a stage without gradients cannot know that of the others.
    square = norm.to(torch.float64).square()
    dist.all_reduce(square, group=pipeline)
    return square.sqrt()


def _norm_here(parameters: Sequence[nn.Parameter]) -> Tensor:
    local_norms: dict[tuple[DeviceMesh | None, tuple[int, ...]], list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            gradient = local_values(parameter.grad)
            # In at least fp32: a sum of many squares in bf16, with 8 bits of precision, would stop growing.
            norm = torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
            local_norms.setdefault(_sharded_axes(parameter.grad), []).append(norm)
    if not local_norms:
        return torch.zeros((), device=parameters[0].device if parameters else None)
    norms = []
    # One all-reduce per mesh and set of axes, not per parameter. Ranks of a mesh reach the same sets in the same order,
    # that of the parameters of their stage.
    for (mesh, axes), parts in local_norms.items():
        norm = torch.linalg.vector_norm(torch.stack(parts))
        if mesh is not None and axes:
            square = norm.square()
            for axis in axes:
                dist.all_reduce(square, group=mesh.get_group(axis))
            norm = square.sqrt()
        norms.append(norm)
    return torch.linalg.vector_norm(torch.stack(norms))


def clip_gradients(parameters: Iterable[nn.Parameter], norm: Tensor, max_norm: float) -> None:
    """Scale all gradients in place so that their global norm, ``norm`` before, is at most ``max_norm``."""
    if norm <= max_norm:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            gradient = local_values(parameter.grad)
            gradient.mul_((max_norm / norm).to(gradient.dtype))


def _sharded_axes(gradient: Tensor) -> tuple[DeviceMesh | None, tuple[int, ...]]:
    """The mesh, and its axes along which ranks hold different parts of the gradient."""
    if not isinstance(gradient, DTensor):
        return None, ()
    assert not any(placement.is_partial() for placement in gradient.placements), (
        f"a gradient of shape {tuple(gradient.shape)} was never summed over ranks: {gradient.placements}"
    )
    axes = tuple(axis for axis, placement in enumerate(gradient.placements) if not placement.is_replicate())
    return gradient.device_mesh, axes
