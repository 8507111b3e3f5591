"""The token embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from archon_core.nn.tensor_parallel import TensorParallel, local_weight


class Embedding(nn.Module):
    """Rows of a table, by token id. The table is left uninitialised, as ``Linear`` leaves its weight.

    Attributes:
        weight: [vocab_size, hidden_size].
        parallel: the tensor ranks over which rows are sharded; ``None`` for all of them here.
    """

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.parallel: TensorParallel | None = None

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states [T, hidden_size] of ``ids`` [T]; of this rank's tokens when they are sequence-sharded."""
        weight = local_weight(self.weight)
        if self.parallel is None:
            return functional.embedding(ids, weight)
        rows = ids - self.parallel.rank * weight.shape[0]
        is_elsewhere = (rows < 0) | (rows >= weight.shape[0])
        hidden = functional.embedding(rows.masked_fill(is_elsewhere, 0), weight)
        return self.parallel.scatter_sum(hidden.masked_fill(is_elsewhere[:, None], 0.0))

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"
