"""Shards the experts of a block over ranks, and gathers them for generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard

from archon_core.contracts.moe import ExpertParallel, MoESettings
from archon_core.errors import LayoutError
from archon_moe.block import MoEBlock
from archon_moe.dispatch.interface import NoDispatch

INTERMEDIATE_DIM = {"gate_proj": 1, "up_proj": 1, "down_proj": 2}
"""Parameter of ``GroupedExperts`` -> the dim that ``etp`` shards; ``ep`` shards dim 0."""


def check_sizes(settings: MoESettings, ep: int, etp: int) -> None:
    """Check that the experts shard evenly.

    Raises:
        LayoutError: a size does not divide; the message names the largest smaller size that does.
    """
    for axis, size, extent, what in (
        ("e", ep, settings.n_experts, "experts"),
        ("etp (t of the ffn part)", etp, settings.intermediate_size, "intermediate size of an expert"),
    ):
        if extent % size:
            largest = max(n for n in range(1, size + 1) if extent % n == 0)
            raise LayoutError(
                f"layout: found {axis} = {size}, which does not divide the model's {extent} ({what}); the largest "
                f"smaller size that does is {largest}"
            )


def shard_experts(block: MoEBlock, place: ExpertParallel) -> None:
    """Make the experts' parameters DTensors over ``place.mesh``, on the meta device, in place.

    Raises:
        LayoutError: ep does not divide the number of experts, or etp their intermediate size.
    """
    check_sizes(block.settings, place.ep, place.etp)
    experts = block.experts
    for name, dim in INTERMEDIATE_DIM.items():
        parameter = getattr(experts, name)
        assert parameter.is_meta, "experts are sharded on the meta device, before weights are loaded"
        shape = list(parameter.shape)
        shape[0] //= place.ep
        shape[dim] //= place.etp
        local = torch.empty(shape, dtype=parameter.dtype, device="meta")
        sharded = DTensor.from_local(local, place.mesh, [Shard(0), Shard(dim)], run_check=False)
        setattr(experts, name, nn.Parameter(sharded, requires_grad=parameter.requires_grad))


@contextmanager
def whole_experts(blocks: Sequence[MoEBlock]) -> Iterator[None]:
    """Gather the experts of ``blocks`` on every rank; see ``archon_core.contracts.moe.MoEBuilder.whole_experts``."""
    # Beside the parameters, not in their place: FSDP and the optimizer keep referring to the DTensors. The block needs
    # no dispatch inside, so ranks may run different numbers of forward passes.
    before = [(block, block.dispatch) for block in blocks]
    try:
        with torch.no_grad():
            for block in blocks:
                block.experts.whole = tuple(_full_tensor(getattr(block.experts, name)) for name in INTERMEDIATE_DIM)
                block.dispatch = NoDispatch()
        yield
    finally:
        for block, dispatch in before:
            block.experts.whole, block.dispatch = None, dispatch


def _full_tensor(parameter: nn.Parameter) -> torch.Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()
