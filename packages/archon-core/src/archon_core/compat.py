"""Every private or renamed torch API that Archon uses, in one place.

Each entry says on which versions it was seen, where upstream stands, and when it can go.
"""

from __future__ import annotations

from typing import Any

import torch.distributed._functional_collectives as functional_collectives
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor.placement_types import Placement, _StridedShard


def all_gather_with_grad(x: Tensor, dim: int, group: Any) -> Tensor:
    """The ranks' ``x`` one after the other along ``dim``; backward sums gradients and gives each rank its part.

    Functional collectives are what torch.compile understands; their module is private in 2.11 to 2.13. 2.13 renamed
    this function and warns about the old name. Remove when a public functional API exists (pytorch/pytorch RFC 93173).
    """
    gather = getattr(functional_collectives, "all_gather_single_autograd", None)
    return (gather or functional_collectives.all_gather_tensor_autograd)(x, dim, group)


def reduce_scatter_with_grad(x: Tensor, dim: int, group: Any) -> Tensor:
    """Each rank's part along ``dim`` of the sum of the ranks' ``x``; backward gathers. See ``all_gather_with_grad``."""
    scatter = getattr(functional_collectives, "reduce_scatter_single_autograd", None)
    return (scatter or functional_collectives.reduce_scatter_tensor_autograd)(x, "sum", dim, group)


def all_to_all_with_grad(x: Tensor, group: Any) -> Tensor:
    """Part i of ``x`` along dim 0, cut evenly, to rank i; parts come in order of ranks. Backward sends gradients back.

    See ``all_gather_with_grad``; this name has not changed.
    """
    return functional_collectives.all_to_all_single_autograd(x.contiguous(), None, None, group)


def all_gather(x: Tensor, dim: int, group: Any) -> Tensor:
    """``all_gather_with_grad`` without gradients."""
    gather = getattr(functional_collectives, "all_gather_single", None)
    return functional_collectives.wait_tensor(
        (gather or functional_collectives.all_gather_tensor)(x.contiguous(), dim, group)
    )


def all_reduce(x: Tensor, group: Any) -> Tensor:
    """The sum of the ranks' ``x``, without gradients."""
    return functional_collectives.wait_tensor(functional_collectives.all_reduce(x.contiguous(), "sum", group))


def strided_shard_dim(placement: Placement) -> int | None:
    """The tensor dim of a shard that was cut after those of later mesh dims; ``None`` for any other placement.

    FSDP2 cuts what tensor parallelism left, and marks that with ``_StridedShard``, which is neither public nor, since
    2.13, a subclass of ``Shard``. Remove when placements can be asked for their order.
    """
    return placement.dim if isinstance(placement, _StridedShard) else None


def forget_forward_passes(root: FSDPModule) -> None:
    """Make FSDP2 forget passes that no backward pass will follow.

    It records every forward pass, also without gradients, until a backward pass ends, and prefetches by that record
    (2.11 to 2.13). After ranks have run different numbers of such passes, one would gather weights for a pass of long
    ago and the others would not: a hang. 2.13 has ``reset_iter_state``, which also throws away gradients on their way.
    Remove when passes without gradients are not recorded.
    """
    # The first forward pass makes the list; a rank that has only lent its weights to others ran none.
    getattr(root._get_fsdp_state()._comm_ctx, "post_forward_order", []).clear()
    for part in root.modules():
        if isinstance(part, FSDPModule):
            state = part._get_fsdp_state()
            # One group per module until 2.12.
            groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
            for group in groups:
                if group is not None:
                    group._post_forward_indices.clear()
