"""Shared by all data sets: locations of records, and the split into training and held-out records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from archon_core.contracts.data import Dataset
from archon_core.errors import ConfigError
from archon_core.seeding import derive_seed
from archon_rl.data_problems import explain_missing_path

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class ListDataset:
    """Records in memory.

    Attributes:
        records: all records.
        places: location of each record, for messages.
    """

    records: Sequence[Mapping[str, Any]]
    places: Sequence[str]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.records[index]

    def where(self, index: int) -> str:
        """The location of a record, for messages."""
        return self.places[index]


@dataclass(frozen=True)
class SubsetDataset:
    """Some of the records of ``source``, in the order of ``indices``."""

    source: Dataset
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.source[self.indices[index]]

    def where(self, index: int) -> str:
        """The location of a record in its source, for messages."""
        return place_of(self.source, self.indices[index])


def split_records(source: Dataset, *, validation_size: int, split: Split, seed: int) -> SubsetDataset:
    """The training or the held-out records of ``source``; a seeded draw holds out ``validation_size`` records.

    Training records keep their order. Held-out records are in drawing order, so the first few are a random sample.

    Raises:
        ConfigError: no record would be left to train on.
    """
    n_records = len(source)
    if not 0 <= validation_size < n_records:
        raise ConfigError(
            f"data.validation_size: found {validation_size}, and a data set of {n_records} records; "
            f"allowed is 0 to {n_records - 1}"
        )
    generator = torch.Generator().manual_seed(derive_seed(seed, "validation_split"))
    order = torch.randperm(n_records, generator=generator)
    chosen = order[:validation_size] if split == "validation" else order[validation_size:].sort().values
    return SubsetDataset(source, chosen.tolist())


COUNTED = " (counted from 0)"
"""Follows the number of a record, which has no line."""


def place_of(dataset: Dataset, index: int) -> str:
    """The location of a record for messages: ``dataset.where(index)`` if the data set has that method."""
    where = getattr(dataset, "where", None)
    return f"record {index}{COUNTED}" if where is None else where(index)


def require_path(config: Any, dataset: str) -> str:
    """``data.path``; raises ConfigError if it is not set."""
    if not config.path:
        raise ConfigError(explain_missing_path(dataset))
    return str(config.path)
