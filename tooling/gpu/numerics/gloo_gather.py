"""Functional all-gathers over gloo for tensors on a GPU.

torch hands them to gloo as coalesced ones, whose kernel reads device memory from the host: the process crashes (torch
2.4 to 2.13, ``AsyncAllgatherCoalescedWork`` in ``ProcessGroupGloo.cpp``). gloo's other collectives, the plain
all-gather among them, copy through the host.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_plainly(device: str) -> torch.library.Library:
    """Make functional all-gathers of tensors on ``device`` plain ones, for as long as the result exists."""
    library = torch.library.Library("_c10d_functional", "IMPL")
    library.impl("all_gather_into_tensor", _gather, device.upper())
    return library


def _gather(x: Tensor, group_size: int, group: Any) -> Tensor:
    whole = x.new_empty(x.shape[0] * group_size, *x.shape[1:])
    # Private in 2.11 to 2.13; operations get the group's name, or the group.
    named = dist.distributed_c10d._resolve_process_group(group) if isinstance(group, str) else group
    # Renamed in 2.13, which warns about the old name.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(whole, x, group=named)
    return whole
