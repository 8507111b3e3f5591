"""The entropy bonus, and entropy as a metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.packed import OutputName
from archon_rl.losses.objective import TermValues


@dataclass(frozen=True)
class EntropyTerm:
    """Minus ``coefficient`` times the entropy of each prediction, in nats. A coefficient of 0 only reports it."""

    coefficient: float = 0.0
    name: str = "entropy_loss"
    outputs: tuple[OutputName, ...] = ("entropy",)
    fields: frozenset[str] = frozenset()

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: Batch) -> TermValues:
        entropy = outputs["entropy"]
        values = -self.coefficient * entropy if self.coefficient else torch.zeros_like(entropy)
        return TermValues(values, metrics={"entropy": entropy.detach()})
