"""Classifies transformers' attention masks during tracing: causal, causal within a window, or neither.

transformers describes a mask as a function of a query's and a key's place. It is evaluated at the places where causal
masks with and without a window differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from archon_engine import compat


@dataclass(frozen=True)
class MaskForm:
    """Replaces a mask during tracing.

    Attributes:
        window: number of keys that a token sees, including its own; ``None`` for all earlier ones.
        is_causal: whether the mask is exactly that.
    """

    window: int | None
    is_causal: bool


def describe_mask(*, mask_function: Callable[..., Tensor], local_size: int | None = None, **_: Any) -> Any:
    """An ``AttentionMaskInterface`` function that returns a ``MaskForm``."""
    with compat.with_storage():
        queries, keys = _places(local_size)
        zero = torch.zeros((), dtype=torch.int64)
        try:
            seen = mask_function(zero, zero, queries, keys)
        except Exception:  # whatever else it looks at, such as the lengths of padding, is not causal attention
            return MaskForm(local_size, False)
        expected = keys <= queries
        if local_size is not None:
            expected &= queries - keys < local_size
        is_causal = seen.shape == expected.shape and torch.equal(seen, expected)
    return MaskForm(local_size, is_causal)


def _places(window: int | None) -> tuple[Tensor, Tensor]:
    """Positions of queries and keys around the borders of a mask."""
    size = 4 if window is None else window
    pairs = {
        (query, key)
        for query in (0, 1, 2, 7, size - 1, size, size + 1, 2 * size, 2 * size + 1, 2 * size + 3)
        for key in (0, 1, 2, query - size - 1, query - size, query - size + 1, query - 1, query, query + 1, size)
        if query >= 0 and key >= 0
    }
    queries, keys = zip(*sorted(pairs), strict=True)
    return torch.tensor(queries), torch.tensor(keys)
