"""Which records belong to which step: a function of the step alone, so that nothing needs to be remembered.

Epochs follow each other without a gap: a batch may take the last records of one and the first of the next, and
over the epochs every record is seen equally often.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from archon_core.errors import ConfigError
from archon_core.seeding import derive_seed


@dataclass(frozen=True)
class DataCursor:
    """The order of ``n_records`` records in batches of ``batch_size``.

    Attributes:
        n_records: records of the training split.
        batch_size: records per step.
        seed: the run's seed; the order of epoch e comes from it and e.
        shuffle: false keeps the order of the data set.

    Raises:
        ConfigError: a batch has more records than the data set, or none.
    """

    n_records: int
    batch_size: int
    seed: int
    shuffle: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= self.n_records:
            raise ConfigError(
                f"data.batch_size: found {self.batch_size}, with {self.n_records} training records; allowed is 1 to "
                f"{self.n_records}; choose another size, or give more records"
            )

    def steps(self, epochs: int) -> int:
        """Full batches in ``epochs`` passes over the data."""
        return epochs * self.n_records // self.batch_size

    def position(self, step: int) -> tuple[int, int]:
        """Epoch and place in it of the first record of ``step``, counted from 0."""
        return divmod(step * self.batch_size, self.n_records)

    def indices(self, step: int) -> list[int]:
        """The records of ``step``, counted from 0."""
        first = step * self.batch_size
        places = [divmod(first + i, self.n_records) for i in range(self.batch_size)]
        orders = {epoch: self._order(epoch) for epoch, _ in places}
        return [int(orders[epoch][place]) for epoch, place in places]

    def _order(self, epoch: int) -> Tensor:
        """int64 [n_records]: the records of one epoch in order."""
        if not self.shuffle:
            return torch.arange(self.n_records)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "data", epoch))
        return torch.randperm(self.n_records, generator=generator)
