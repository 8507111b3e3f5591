"""Cross entropy, the loss of supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.packed import OutputName
from archon_rl.losses.objective import TermValues


@dataclass(frozen=True)
class NegativeLogLikelihood:
    """``-log p(token)``, in nats; its token mean is the cross entropy of supervised fine-tuning."""

    name: str = "cross_entropy"
    outputs: tuple[OutputName, ...] = ("logprobs",)
    fields: frozenset[str] = frozenset()

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: Batch) -> TermValues:
        return TermValues(-outputs["logprobs"])
