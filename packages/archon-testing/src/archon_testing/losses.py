"""The losses of the oracle, and a plain one. The oracle's have two units, every output of the head, and a metric.

Their terms have one sign and none comes near zero, so that nothing cancels and relative errors mean something in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import (
    Loss,
    LossSums,
    OutputRequest,
    Unit,
)
from archon_core.contracts.packed import OutputName
from archon_testing.batches import MASK, PULL, SCALE


class NegativeLogLikelihood:
    """Minus the log-likelihood of every next token, per token: for tests that need some loss."""

    request = OutputRequest()

    def weights(self, batch: Batch) -> Mapping[Unit, Tensor | float]:
        return {"token": float(batch.n_tokens)}

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: Batch) -> LossSums:
        return LossSums({"token": -outputs["logprobs"].sum()})


class LanguageModelLoss:
    """Weighted likelihood and entropy per token; mean likelihood per sequence, over those that predict something."""

    request = OutputRequest(("logprobs", "entropy"), temperature=0.8)

    def weights(self, batch: Batch) -> Mapping[Unit, Tensor | float]:
        return _weights(batch)

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: Batch) -> LossSums:
        mask = micro_batch.token_fields[MASK]
        logprobs, entropy = _masked(outputs["logprobs"], mask), _masked(outputs["entropy"], mask)
        token = (_masked(micro_batch.token_fields[PULL], mask) * (entropy - 2 * logprobs)).sum()
        sequence = -_sum_of_means(logprobs, micro_batch)
        return LossSums({"token": token, "sequence": sequence}, {"entropy": ("token", entropy.detach().sum())})


class ValueLoss:
    """Squared error of the values per token, and its mean per sequence, with targets that values do not reach."""

    offset = 4.0

    request = OutputRequest(("values",))

    def weights(self, batch: Batch) -> Mapping[Unit, Tensor | float]:
        return _weights(batch)

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: Batch) -> LossSums:
        targets = micro_batch.token_fields[PULL] + self.offset
        error = _masked(outputs["values"] - targets, micro_batch.token_fields[MASK]).square()
        sums = {"token": error.sum(), "sequence": _sum_of_means(error, micro_batch)}
        return LossSums(sums, {"error": ("token", error.detach().sum())})


def oracle_loss(*, critic: bool) -> Loss:
    """The loss for a critic or a language model."""
    return ValueLoss() if critic else LanguageModelLoss()


def _weights(batch: Batch) -> Mapping[Unit, Tensor | float]:
    return {"token": batch.token_fields[MASK].sum(), "sequence": (_counted(batch) > 0).sum()}


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` [T] with 0 where the mask does not count. Not a product: 0 times infinity is NaN."""
    return torch.where(mask > 0, values, 0)


def _counted(batch: Batch) -> Tensor:
    """[S]: tokens of each sequence that the mask counts."""
    return batch.sum_per_sequence(batch.token_fields[MASK])


def _sum_of_means(values: Tensor, batch: Batch) -> Tensor:
    """The scaled sum over sequences of the mean of ``values`` [T], which are 0 outside the mask."""
    means = batch.sum_per_sequence(values) / _counted(batch).clamp(min=1)
    return (batch.sequence_fields[SCALE] * means).sum()
