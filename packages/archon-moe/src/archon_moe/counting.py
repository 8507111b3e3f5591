"""Counts that no device is waited for: ``torch.bincount`` looks at its argument's largest value on the host."""

from __future__ import annotations

import torch
from torch import Tensor


def count_each(numbers: Tensor, n: int) -> Tensor:
    """int64 [n], how often each of 0 to n - 1 stands in ``numbers``, which holds no others."""
    flat = numbers.reshape(-1).to(torch.int64)
    return torch.zeros(n, dtype=torch.int64, device=flat.device).scatter_add_(0, flat, torch.ones_like(flat))
