"""The losses of the oracle, and a plain one. The oracle's losses use two units, every output of the head, and a metric.

All terms have the same sign and none is near zero, so that nothing cancels and relative errors are meaningful in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import (
    LossSums,
    OutputRequest,
    Unit,
)
from archon_core.contracts.packed import OutputName
from archon_testing.batches import MASK, PULL, SCALE

TARGETS = "targets"
"""Name of the metric that counts them."""


class NegativeLogLikelihood:
    """Mean negative log-likelihood of the next token, for tests that need any loss."""

    request = OutputRequest()

    def weights(self, batch: Batch) -> Mapping[Unit, Tensor | float]:
        return {"token": float(batch.n_tokens)}

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: Batch) -> LossSums:
        return LossSums({"token": -outputs["logprobs"].sum()})


@dataclass
class Counted:
    """The targets that a loss saw on this rank since the last step.

    Attributes:
        weighed: targets of the batches passed to ``weights``.
        targets: targets of the micro-batches passed to the loss.
        n_calls: number of calls of the loss; 0 if another pipeline stage computes it.
    """

    weighed: float = 0.0
    targets: float = 0.0
    n_calls: int = 0


class OracleLoss:
    """Base of the oracle's losses: counts targets."""

    def __init__(self) -> None:
        self.counted = Counted()

    def weights(self, batch: Batch) -> Mapping[Unit, Tensor | float]:
        """Number of targets, and of sequences with targets."""
        self.counted.weighed += n_targets(batch)
        return {"token": batch.token_fields[MASK].sum(), "sequence": (_counted(batch) > 0).sum()}

    def count(self, micro_batch: Batch) -> tuple[Unit, Tensor]:
        """Count a micro-batch; return a metric that is 1 over the whole batch unless the loss is divided wrongly."""
        self.counted.targets += n_targets(micro_batch)
        self.counted.n_calls += 1
        return "token", micro_batch.token_fields[MASK].sum()


class LanguageModelLoss(OracleLoss):
    """Weighted likelihood and entropy per token; mean likelihood per sequence with targets."""

    request = OutputRequest(("logprobs", "entropy"), temperature=0.8)

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: Batch) -> LossSums:
        mask = micro_batch.token_fields[MASK]
        logprobs, entropy = _masked(outputs["logprobs"], mask), _masked(outputs["entropy"], mask)
        token = (_masked(micro_batch.token_fields[PULL], mask) * (entropy - 2 * logprobs)).sum()
        sequence = -_sum_of_means(logprobs, micro_batch)
        metrics = {"entropy": ("token", entropy.detach().sum()), TARGETS: self.count(micro_batch)}
        return LossSums({"token": token, "sequence": sequence}, metrics)


class LikelihoodLoss(OracleLoss):
    """Weighted likelihood per token, for implementations without entropies and without a second unit."""

    request = OutputRequest()

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: Batch) -> LossSums:
        mask = micro_batch.token_fields[MASK]
        pull, logprobs = _masked(micro_batch.token_fields[PULL], mask), _masked(outputs["logprobs"], mask)
        return LossSums({"token": -(pull * logprobs).sum()}, {TARGETS: self.count(micro_batch)})


class ValueLoss(OracleLoss):
    """Squared error of values per token, and its mean per sequence, with targets far from the values."""

    offset = 4.0

    request = OutputRequest(("values",))

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: Batch) -> LossSums:
        targets = micro_batch.token_fields[PULL] + self.offset
        error = _masked(outputs["values"] - targets, micro_batch.token_fields[MASK]).square()
        sums = {"token": error.sum(), "sequence": _sum_of_means(error, micro_batch)}
        return LossSums(sums, {"error": ("token", error.detach().sum()), TARGETS: self.count(micro_batch)})


def oracle_loss(*, critic: bool) -> LanguageModelLoss | ValueLoss:
    """The loss for a critic or a language model."""
    return ValueLoss() if critic else LanguageModelLoss()


def n_targets(batch: Batch) -> float:
    """Tokens that a loss counts."""
    return float(batch.token_fields[MASK].sum())


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` [T] with 0 outside the mask. Not a product: 0 * inf is NaN."""
    return torch.where(mask > 0, values, 0)


def _counted(batch: Batch) -> Tensor:
    """[S]: targets per sequence."""
    return batch.sum_per_sequence(batch.token_fields[MASK])


def _sum_of_means(values: Tensor, batch: Batch) -> Tensor:
    """The scaled sum over sequences of the mean of ``values`` [T], which are 0 outside the mask."""
    means = batch.sum_per_sequence(values) / _counted(batch).clamp(min=1)
    return (batch.sequence_fields[SCALE] * means).sum()
