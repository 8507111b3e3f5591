"""Aggregation of per-token losses to a scalar: the three normalisations in use for policy gradients.

With values l_{i,t} over the trained tokens of sequence i (|o_i| of them, S sequences, N tokens in all):

- ``TokenMean``: sum l_{i,t} / N. DAPO (arXiv:2503.14476, eq. 12): all tokens weigh the same.
- ``SequenceMean``: sum_i (1 / |o_i|) sum_t l_{i,t} / S. GRPO (arXiv:2402.03300, eq. 3): all sequences weigh the same.
- ``ConstantLength``: sum l_{i,t} / (S * L) with a fixed L. Dr.GRPO (arXiv:2503.20783, section 3.2): no length bias.

The numerator is summed per micro-batch, and the denominator depends on the whole batch alone, so the result does not
depend on the split into micro-batches. A split never divides a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import Unit

LOSS_MASK = "loss_mask"
"""Token field, bool [T], aligned to predictions: true where the loss counts."""


class Aggregation(Protocol):
    """Numerator and denominator of one normalisation."""

    @property
    def unit(self) -> Unit:
        """The unit (``contracts.loss.Unit``) of both."""

    def weight(self, batch: Batch) -> Tensor:
        """The denominator, a float64 scalar; additive over any split of the batch by sequences."""

    def sum(self, values: Tensor, batch: Batch) -> Tensor:
        """The numerator for ``values`` [T], which are 0 outside the loss mask."""


@dataclass(frozen=True)
class TokenMean:
    """The mean over trained tokens."""

    unit: Unit = "token"

    def weight(self, batch: Batch) -> Tensor:
        return batch.token_fields[LOSS_MASK].sum(dtype=torch.float64)

    def sum(self, values: Tensor, batch: Batch) -> Tensor:
        return values.sum()


@dataclass(frozen=True)
class SequenceMean:
    """The mean over sequences of the mean over their trained tokens; sequences without trained tokens do not count."""

    unit: Unit = "sequence"

    def weight(self, batch: Batch) -> Tensor:
        return (trained_tokens(batch) > 0).sum(dtype=torch.float64)

    def sum(self, values: Tensor, batch: Batch) -> Tensor:
        return (batch.sum_per_sequence(values) / trained_tokens(batch).clamp(min=1)).sum()


@dataclass(frozen=True)
class ConstantLength:
    """The sum divided by ``length`` times the number of sequences, with or without trained tokens."""

    length: int
    unit: Unit = "constant"

    def weight(self, batch: Batch) -> Tensor:
        return torch.tensor(float(len(batch) * self.length), dtype=torch.float64, device=batch.input_ids.device)

    def sum(self, values: Tensor, batch: Batch) -> Tensor:
        return values.sum()


def trained_tokens(batch: Batch) -> Tensor:
    """int64 [S]: trained tokens per sequence."""
    return batch.sum_per_sequence(batch.token_fields[LOSS_MASK].long())
