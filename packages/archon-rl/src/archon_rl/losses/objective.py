"""The one ``contracts.loss.Loss`` of this package: a sum of per-token terms under one aggregation.

A term sees model outputs and the micro-batch and returns a value per token. The objective decides which tokens count
and divides the sum, so a term cannot depend on the split of a batch. The objective also replaces outputs and fields
outside the loss mask before any term reads them (``losses.masking``), so no term can turn a masked token into NaN.
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
    """A term's results for each token.

    Attributes:
        values: [T], this term's part of the loss.
        metrics: name -> detached [T], reported as means over the trained tokens.
    """

    values: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class TokenTerm(Protocol):
    """A part of a loss that is a sum over tokens."""

    @property
    def name(self) -> str:
        """Under which its aggregated value is reported."""

    @property
    def outputs(self) -> tuple[OutputName, ...]:
        """Model outputs that it reads."""

    @property
    def fields(self) -> frozenset[str]:
        """Token fields of the batch that it reads, the loss mask aside."""

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: Batch) -> TermValues:
        """Values per token.

        Args:
            outputs: the outputs named above, with ``masking.NEUTRAL`` outside the loss mask.
            micro_batch: its floating-point token fields likewise.

        Returns:
            Values and metrics; entries outside the loss mask are ignored.
        """


@dataclass(frozen=True)
class Objective:
    """The sum of ``terms``, aggregated over the trained tokens.

    Attributes:
        terms: the parts.
        aggregation: what the sum is divided by.
        temperature: that of the distribution whose log-probabilities and entropy the terms read.
    """

    terms: tuple[TokenTerm, ...]
    aggregation: Aggregation = field(default_factory=TokenMean)
    temperature: float = 1.0

    @cached_property
    def request(self) -> OutputRequest:
        names = dict.fromkeys(name for term in self.terms for name in term.outputs)
        return OutputRequest(names=tuple(names), temperature=self.temperature)

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
