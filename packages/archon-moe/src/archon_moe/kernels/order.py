"""Groups the rows of each expert by sorting indices; the rows themselves stay in place.

Legend: N rows, K experts per row, E experts, M pairs of a row and one of its experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ExpertOrder:
    """The pairs of a row and one of its experts, sorted by expert.

    Attributes:
        pairs: int64 [M], indices into the flattened choices [N * K]; ``pairs // K`` is the row.
        counts: int64 [E], number of pairs of each expert.
    """

    pairs: Tensor
    counts: Tensor


def order_by_expert(experts: Tensor, n_experts: int, n_pairs: int) -> ExpertOrder:
    """Sort choices by expert, and by row within each expert.

    Args:
        experts: int [N, K], -1 for a choice that is not computed here.
        n_experts: E.
        n_pairs: M, how many choices are not -1; an argument, because counting them would wait for the device.
    """
    flat = experts.reshape(-1)
    # Choices that are -1 sort behind all experts, where the slice drops them.
    keys = torch.where(flat < 0, n_experts, flat) if n_pairs < flat.numel() else flat
    # Stable: rows of an expert stay in order, so the rounding of sums does not depend on the sorting algorithm.
    pairs = torch.argsort(keys, stable=True)[:n_pairs]
    return ExpertOrder(pairs, count_each(keys, n_experts + 1)[:n_experts])


def count_each(numbers: Tensor, n: int) -> Tensor:
    """int64 [n], how often each of 0 to n - 1 occurs in ``numbers``, which must hold no other values."""
    # Not torch.bincount: even with minlength it reads the largest value on the host, which waits for the device.
    flat = numbers.reshape(-1).to(torch.int64)
    return torch.zeros(n, dtype=torch.int64, device=flat.device).scatter_add_(0, flat, torch.ones_like(flat))
