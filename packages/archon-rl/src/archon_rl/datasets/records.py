"""What the sources of records share: the check of a record, and the cut into training and held-out records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from archon_core.contracts.data import Dataset
from archon_core.errors import ConfigError, DataError, did_you_mean
from archon_core.seeding import derive_seed

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class ListDataset:
    """Records in memory."""

    records: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.records[index]


@dataclass(frozen=True)
class SubsetDataset:
    """Some of the records of ``source``, in the order of ``indices``."""

    source: Dataset
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.source[self.indices[index]]


def cut(source: Dataset, *, validation_size: int, split: Split, seed: int) -> SubsetDataset:
    """The training or the held-out part of ``source``: ``validation_size`` records, drawn by the seed, are held out.

    Training records keep their order. Held-out ones come in the order in which they were drawn, so that the first
    few of them are a sample of all.

    Raises:
        ConfigError: nothing would be left to train on.
    """
    n_records = len(source)
    if not 0 <= validation_size < n_records:
        raise ConfigError(
            f"data.validation_size: found {validation_size} and a data set of {n_records} records; "
            f"it must be from 0 to {n_records - 1}"
        )
    generator = torch.Generator().manual_seed(derive_seed(seed, "validation_split"))
    order = torch.randperm(n_records, generator=generator)
    chosen = order[:validation_size] if split == "validation" else order[validation_size:].sort().values
    return SubsetDataset(source, chosen.tolist())


def check_keys(record: Any, keys: Sequence[str], where: str) -> None:
    """Raise ``DataError`` when a record is not a mapping with ``keys``. ``where`` names the record."""
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: found a {type(record).__name__}; every record must be an object with named fields")
    for key in keys:
        if key not in record:
            names = [str(name) for name in record]
            raise DataError(
                f"{where}: there is no field {key!r}; found {', '.join(map(repr, names)) or 'none'}; set "
                f"data.prompt_key and data.answer_key to two of them{did_you_mean(key, names)}"
            )


def require_path(config: Any, dataset: str, example: str) -> str:
    """``data.path``, or a ``ConfigError`` that says how to give it."""
    if not config.path:
        raise ConfigError(f"data.path: found none, and dataset {dataset!r} needs one; add data.path={example}")
    return str(config.path)
