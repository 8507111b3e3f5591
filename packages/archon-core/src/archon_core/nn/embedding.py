"""The token embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Embedding(nn.Module):
    """Rows of a table, by token id. The table is left uninitialised, as ``Linear`` leaves its weight.

    Attributes:
        weight: [vocab_size, hidden_size].
    """

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states [T, hidden_size] of ``ids`` [T]."""
        return functional.embedding(ids, self.weight)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"
