"""How per-token losses become one number: the three normalisations in use for policy gradients.

With values l_{i,t} over the trained tokens of sequence i (|o_i| of them, S sequences, N tokens in all):

- ``TokenMean``: sum l_{i,t} / N. DAPO (arXiv:2503.14476, eq. 12): every token weighs the same.
- ``SequenceMean``: sum_i (1 / |o_i|) sum_t l_{i,t} / S. GRPO (arXiv:2402.03300, eq. 3): every sequence does.
- ``ConstantLength``: sum l_{i,t} / (S * L) with a fixed L. Dr.GRPO (arXiv:2503.20783): no length bias.

Each gives its numerator per micro-batch and its denominator from the batch alone, which is what makes the
result independent of the split. A sequence is never divided between micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import Unit

LOSS_MASK = "loss_mask"
"""Token field, bool [T], aligned to predictions: which predictions are trained on."""


class Aggregation(Protocol):
    """Numerator and denominator of one normalisation."""

    @property
    def unit(self) -> Unit:
        """The unit of ``contracts.loss.Loss`` that both belong to."""

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
    """The mean over sequences of the mean over their trained tokens; sequences without any do not count."""

    unit: Unit = "sequence"

    def weight(self, batch: Batch) -> Tensor:
        return (_trained_tokens(batch) > 0).sum(dtype=torch.float64)

    def sum(self, values: Tensor, batch: Batch) -> Tensor:
        return (batch.sum_per_sequence(values) / _trained_tokens(batch).clamp(min=1)).sum()


@dataclass(frozen=True)
class ConstantLength:
    """The sum over ``length`` times the number of sequences, trained on or not."""

    length: int
    unit: Unit = "constant"

    def weight(self, batch: Batch) -> Tensor:
        return torch.tensor(float(len(batch) * self.length), dtype=torch.float64, device=batch.input_ids.device)

    def sum(self, values: Tensor, batch: Batch) -> Tensor:
        return values.sum()


def _trained_tokens(batch: Batch) -> Tensor:
    """int64 [S]: tokens in the loss mask per sequence."""
    return batch.sum_per_sequence(batch.token_fields[LOSS_MASK].long())
