"""The order of records: a pure function of the step and of one number, the records drawn beyond those of earlier steps.

A batch may span two epochs: epochs follow each other without dropping records, so all records are seen equally often.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from archon_core.errors import ConfigError
from archon_core.seeding import derive_seed

KEPT_ORDERS = 2
"""Epochs whose order is kept: groups that are sampled at the same time may belong to two."""


@dataclass
class DataCursor:
    """The order of ``n_records`` records in batches of ``batch_size``, and of further records that steps draw.

    Attributes:
        n_records: records of the training split.
        batch_size: records per step.
        seed: the run's seed; the order of an epoch depends on it and on the epoch.
        shuffle: shuffle each epoch; false keeps the order of the data set.
        refilled: number of records that all steps so far have drawn in addition to their batches.

    Raises:
        ConfigError: ``batch_size`` is not between 1 and ``n_records``.
    """

    n_records: int
    batch_size: int
    seed: int
    shuffle: bool = True
    refilled: int = 0
    _orders: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= self.n_records:
            raise ConfigError(
                f"data.batch_size: found {self.batch_size}, and {self.n_records} training records; allowed is 1 to "
                f"{self.n_records}; change it, or add records"
            )

    def steps(self, epochs: int) -> int:
        """Full batches in ``epochs`` passes over the data."""
        return epochs * self.n_records // self.batch_size

    def position(self, step: int) -> tuple[int, int]:
        """Epoch, and position in it, of the first record of ``step``, all counted from 0."""
        return divmod(self.first(step), self.n_records)

    def first(self, step: int) -> int:
        """Number of the first record of ``step``, counted over all records that the run draws."""
        return step * self.batch_size + self.refilled

    def seek(self, step: int, *, drawn: int) -> None:
        """Continue before ``step``, after ``drawn`` records in all."""
        self.refilled = drawn - step * self.batch_size

    def indices(self, step: int) -> list[int]:
        """Indices of the batch of ``step``, counted from 0."""
        return self._indices(self.first(step), self.batch_size)

    def refill(self, step: int, n: int) -> list[int]:
        """Indices of the next ``n`` records, which ``step`` draws in addition to its batch."""
        indices = self._indices(self.first(step + 1), n)
        self.refilled += n
        return indices

    def index(self, number: int) -> int:
        """Index of the record that is drawn after ``number`` others."""
        return self._indices(number, 1)[0]

    def _indices(self, first: int, n: int) -> list[int]:
        places = [divmod(first + i, self.n_records) for i in range(n)]
        orders = {epoch: self._order(epoch) for epoch, _ in places}
        return [int(orders[epoch][place]) for epoch, place in places]

    def _order(self, epoch: int) -> Tensor:
        """int64 [n_records]: the records of one epoch in order."""
        if epoch not in self._orders:
            if len(self._orders) == KEPT_ORDERS:
                self._orders.pop(min(self._orders))
            self._orders[epoch] = self._drawn_order(epoch)
        return self._orders[epoch]

    def _drawn_order(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.n_records)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "data", epoch))
        return torch.randperm(self.n_records, generator=generator)
