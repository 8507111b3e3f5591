"""``Objective``, the implementation of ``contracts.loss.Loss``: a sum of per-token terms under one aggregation.

A term maps model outputs and a micro-batch to a value per token. The objective applies the loss mask and normalises, so
a term cannot depend on the split of a batch. It also neutralises outputs and fields outside the mask before any term
reads them (``losses.masking``), so no term can turn a masked token into NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import LossSums, OutputRequest, Unit
from archon_core.contracts.packed import OutputName
from archon_rl.losses.aggregation import LOSS_MASK, Aggregation, TokenMean
from archon_rl.losses.masking import mask_fields, mask_inputs, mask_values


@dataclass(frozen=True)
class TermValues:
    """The results of a term.

    Attributes:
        values: [T], the term's contribution to the loss.
        metrics: name -> detached [T], reported as means over the trained tokens.
    """

    values: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class TokenTerm(Protocol):
    """A part of a loss that is a sum over tokens."""

    @property
    def name(self) -> str:
        """Metric name of its aggregated value."""

    @property
    def outputs(self) -> tuple[OutputName, ...]:
        """Model outputs that it reads."""

    @property
    def fields(self) -> frozenset[str]:
        """Token fields of the batch that it reads, besides the loss mask."""

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: Batch) -> TermValues:
        """Values per token.

        Args:
            outputs: the requested outputs, ``masking.NEUTRAL`` outside the loss mask.
            micro_batch: the micro-batch, whose floating-point token fields are masked likewise.

        Returns:
            Values and metrics; entries outside the loss mask are ignored.
        """


@dataclass(frozen=True)
class Objective:
    """The sum of ``terms``, aggregated over the trained tokens.

    Attributes:
        terms: summands.
        aggregation: normalisation of the sum.
        temperature: of the distribution whose log-probabilities and entropy the terms read.
    """

    terms: tuple[TokenTerm, ...]
    aggregation: Aggregation = field(default_factory=TokenMean)
    temperature: float = 1.0

    @cached_property
    def request(self) -> OutputRequest:
        names = dict.fromkeys(name for term in self.terms for name in term.outputs)
        return OutputRequest(names=tuple(names), temperature=self.temperature, where=LOSS_MASK)

    @property
    def fields(self) -> frozenset[str]:
        """Token fields that the batch must have."""
        return frozenset({LOSS_MASK}).union(*(term.fields for term in self.terms))

    def weights(self, batch: Batch) -> Mapping[Unit, Tensor | float]:
        batch = mask_fields(batch)
        return {"token": TokenMean().weight(batch), self.aggregation.unit: self.aggregation.weight(batch)}

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: Batch) -> LossSums:
        mask = micro_batch.token_fields[LOSS_MASK]
        unit = self.aggregation.unit
        outputs, micro_batch = mask_inputs(outputs, micro_batch)
        sums: list[Tensor] = []
        metrics: dict[str, tuple[Unit, Tensor]] = {}
        for term in self.terms:
            result = term(outputs, micro_batch)
            total = self.aggregation.sum(mask_values(result.values, mask), micro_batch)
            sums.append(total)
            metrics[term.name] = (unit, total.detach())
            for name, values in result.metrics.items():
                metrics[name] = ("token", mask_values(values, mask).sum())
        return LossSums(terms={unit: torch.stack(sums).sum()}, metrics=metrics)
