"""Masks that depend on all tokens of a mini-batch.

Such a mask cannot be part of a loss, which sees one micro-batch at a time. Before the update on a mini-batch, the
trainer runs one forward pass over it, computes the masks from the current policy's outputs and adds them to the batch
as token fields. Every rank computes the whole mask, so masks do not depend on the layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.packed import OutputName


class WholeBatchMask(Protocol):
    """Chooses tokens of a mini-batch."""

    @property
    def field(self) -> str:
        """Name of the bool token field that it makes."""

    @property
    def outputs(self) -> tuple[OutputName, ...]:
        """Model outputs that it reads."""

    @property
    def fields(self) -> frozenset[str]:
        """Token fields that it reads, besides the loss mask."""

    def __call__(self, outputs: Mapping[OutputName, Tensor], batch: Batch) -> Tensor:
        """bool [T] for the mini-batch ``batch`` and the current policy's ``outputs`` [T]; any value outside the loss
        mask."""


def positions_of_largest(values: Tensor, candidates: Tensor, n: int) -> Tensor:
    """bool [T]: the ``n`` largest of ``values`` [T] at ``candidates`` (bool [T]), or all candidates if there are fewer;
    the first of equal ones."""
    order = torch.where(candidates, values, -torch.inf).argsort(descending=True, stable=True)
    chosen = torch.zeros_like(candidates)
    chosen[order[:n]] = True
    return chosen & candidates
