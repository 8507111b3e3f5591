"""The token embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from archon_engine.nn.tensor_parallel import TensorParallel, local_weight


def own_rows(ids: Tensor, own: range) -> tuple[Tensor, Tensor]:
    """For each id, its index among this rank's rows ``own``, int64 [T], and whether another rank has it, bool [T]. The
    index is 0 for ids of other ranks, to be a valid row; the caller masks the result."""
    is_elsewhere = (ids < own.start) | (ids >= own.stop)
    return (ids - own.start).masked_fill(is_elsewhere, 0), is_elsewhere


class Embedding(nn.Module):
    """A table of rows by token id. The table is left uninitialised, like the weight of ``Linear``.

    Attributes:
        weight: [vocab_size, hidden_size], or this rank's rows of it.
        vocab_size: rows on all tensor ranks together.
        scale: factor on hidden states. It is rounded to their dtype first, as in Gemma.
        parallel: the tensor ranks over which rows are sharded; ``None`` without tensor parallelism.
    """

    def __init__(self, vocab_size: int, hidden_size: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.vocab_size = vocab_size
        self.scale = scale
        self.parallel: TensorParallel | None = None

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states [T, hidden_size] of ``ids`` [T]; of this rank's tokens when they are sequence-sharded."""
        weight = local_weight(self.weight)
        if self.parallel is None:
            return self._scaled(functional.embedding(ids, weight))
        rows, is_elsewhere = own_rows(ids, self.parallel.own_part(self.vocab_size))
        hidden = functional.embedding(rows, weight)
        return self._scaled(self.parallel.scatter_sum(hidden.masked_fill(is_elsewhere[:, None], 0.0)))

    def _scaled(self, hidden: Tensor) -> Tensor:
        return hidden if self.scale == 1.0 else hidden * torch.tensor(self.scale, dtype=hidden.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"
