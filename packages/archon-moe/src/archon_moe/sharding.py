"""Shards the experts of a block over ranks, and gathers them for generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from archon_core.contracts.moe import ExpertParallel, MoESettings
from archon_core.errors import LayoutError
from archon_moe.block import MoEBlock
from archon_moe.dispatch.interface import NoDispatch
from archon_moe.low_rank import full_tensor

ETP_DIM = {"gate_proj": 1, "up_proj": 1, "down_proj": 2, "gate_bias": 1, "up_bias": 1, "down_bias": 1}
"""Parameter of ``GroupedExperts`` -> the dim that ``etp`` shards, in the order of parameters; ``ep`` shards dim 0."""


def check_sizes(settings: MoESettings, ep: int, etp: int) -> None:
    """Check that the experts shard evenly.

    Raises:
        LayoutError: a size does not divide; the message names the largest smaller size that does.
    """
    inner = "etp (t of the ffn part)"
    checked = [
        ("e", ep, settings.n_experts, "experts"),
        (inner, etp, settings.intermediate_size, "intermediate size of an expert"),
    ]
    if settings.expert_bias:
        checked.append((inner, etp, settings.hidden_size, "hidden size, which is that of the experts' output biases"))
    for axis, size, extent, what in checked:
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
    for name, _ in list(experts.named_parameters(recurse=False)):
        _shard(experts, name, place, Shard(ETP_DIM[name]))
    if experts.down_bias is not None:
        experts.down_bias_start = place.mesh.get_local_rank(1) * (block.settings.hidden_size // place.etp)
    lora = experts.lora
    for name in () if lora is None else lora.projections:
        # One factor has the intermediate size in place of the hidden size; the other is whole on all etp ranks.
        cut = ETP_DIM[name]
        _shard(lora, f"{name}_A", place, Shard(2) if cut == 2 else Replicate())
        _shard(lora, f"{name}_B", place, Shard(1) if cut == 1 else Replicate())


def _shard(owner: nn.Module, name: str, place: ExpertParallel, over_etp: Placement) -> None:
    parameter = getattr(owner, name)
    assert parameter.is_meta, "experts are sharded on the meta device, before weights are loaded"
    shape = list(parameter.shape)
    shape[0] //= place.ep
    if isinstance(over_etp, Shard):
        shape[over_etp.dim] //= place.etp
    local = torch.empty(shape, dtype=parameter.dtype, device="meta")
    sharded = DTensor.from_local(local, place.mesh, [Shard(0), over_etp], run_check=False)
    setattr(owner, name, nn.Parameter(sharded, requires_grad=parameter.requires_grad))


@contextmanager
def whole_experts(blocks: Sequence[MoEBlock]) -> Iterator[None]:
    """Gather the experts of ``blocks`` on every rank; see ``archon_core.contracts.moe.MoEBuilder.whole_experts``."""
    # Beside the parameters, not in their place: FSDP and the optimizer keep referring to the DTensors. The block needs
    # no dispatch inside, so ranks may run different numbers of forward passes.
    before = [(block, block.dispatch) for block in blocks]
    try:
        with torch.no_grad():
            for block in blocks:
                block.experts.whole = tuple(map(full_tensor, block.experts.parameters(recurse=False)))
                if block.experts.lora is not None:
                    block.experts.lora.gather()
                block.dispatch = NoDispatch()
        yield
    finally:
        for block, dispatch in before:
            block.experts.whole, block.dispatch = None, dispatch
            if block.experts.lora is not None:
                block.experts.lora.whole = None
