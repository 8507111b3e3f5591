"""A causal convolution over packed sequences, one filter per feature, which reads no token of another sequence.

Legend: T tokens, S segments, F features, K filter length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from archon_core.contracts.module import InitialValue
from archon_engine.nn.tensor_parallel import local_weight


class Filters(nn.Module):
    """The filters of a depthwise convolution, with role ``column``: a tensor rank has those of its features.

    Attributes:
        weight: [F, 1, K], as ``torch.nn.Conv1d`` with ``groups=F`` stores it.
    """

    initial_values: ClassVar[Mapping[str, InitialValue]] = {"weight": "normal"}

    def __init__(self, n_features: int, length: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_features, 1, length))

    def forward(self) -> Tensor:
        """The filters of this rank's features, [F, K]."""
        return local_weight(self.weight).squeeze(1)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]} of {self.weight.shape[2]}"


def causal_convolution(
    x: Tensor, filters: Tensor, lengths: tuple[int, ...], history: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Convolve every segment with its own earlier tokens.

    Args:
        x: [T, F].
        filters: [F, K]; the last element multiplies the token itself.
        lengths: of the segments.
        history: [S, K - 1, F], the tokens before each segment; ``None`` where all are the first of their sequence.

    Returns:
        The convolved tokens [T, F], and the last K - 1 tokens of each segment with its history, [S, K - 1, F].
    """
    (n_features, size), n_segments = filters.shape, len(lengths)
    n_before = size - 1
    # Each segment is preceded by its history, so that no window of K rows reaches into another segment.
    lengths_S = torch.tensor(lengths, dtype=torch.int64)
    segment_of_token = torch.repeat_interleave(torch.arange(n_segments), lengths_S, output_size=len(x))
    rows = (torch.arange(len(x)) + n_before * (segment_of_token + 1)).to(x.device, non_blocking=True)
    extended = x.new_zeros(len(x) + n_before * n_segments, n_features)
    extended[rows] = x  # saves the rows alone for backward; ``index_copy`` would save ``x``, too
    starts = lengths_S.cumsum(0) - lengths_S + n_before * torch.arange(n_segments)
    before = torch.arange(n_before)
    if history is not None:
        places = (starts[:, None] + before).flatten().to(x.device, non_blocking=True)
        extended[places] = history.flatten(0, 1)
    # In at least fp32, as convolution kernels accumulate.
    wide = torch.promote_types(x.dtype, torch.float32)
    windows, filters_wide = extended.to(wide), filters.to(wide)
    n_windows = len(windows) - n_before
    convolved = sum(windows[i : i + n_windows] * filters_wide[:, i] for i in range(size))
    assert isinstance(convolved, Tensor), "a filter has at least one element"
    last = (starts[:, None] + lengths_S[:, None] + before).to(x.device, non_blocking=True)
    return convolved[rows - n_before].to(x.dtype), extended[last]
