"""Records from Hugging Face ``datasets``, an optional dependency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from archon_core.contracts.data import Dataset
from archon_core.errors import ConfigError, DataError
from archon_rl.data_problems import same_validation
from archon_rl.datasets.records import COUNTED, Split, require_path, split_records
from archon_rl.fields import with_location
from archon_rl.preference_fields import fields_of
from archon_rl.run_problems import refuse


@dataclass(frozen=True)
class HuggingFaceDataset:
    """Records of a loaded split.

    Attributes:
        columns: a ``datasets.Dataset``.
        name: of the split, for messages.
    """

    columns: Any
    name: str

    def __len__(self) -> int:
        return len(self.columns)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """The record. Raises DataError if ``datasets`` cannot decode it."""
        try:
            return self.columns[index]
        except Exception as error:  # decoders of images, audio and archives raise their own types
            raise DataError(f"{self.where(index)}: datasets could not decode it: {error}") from error

    def where(self, index: int) -> str:
        """The location of a record, for messages."""
        return f"{self.name}, record {index}{COUNTED}"


def huggingface_dataset(config: Any, *, split: Split, seed: int) -> Dataset:
    """A split of the data set ``data.path`` (hub id or local folder), with the options ``data.hf``.

    Held-out records are the split ``data.hf.validation_split`` of ``data.validation_path``; either defaults to its
    training counterpart. If neither is set, ``data.validation_size`` training records are held out.

    Raises:
        ConfigError: ``datasets`` is not installed, there is no path, the data set cannot be loaded, or the held-out
            records are the training records.
        DataError: the records lack a field, or the first one is invalid.
    """
    path = require_path(config, "hf")
    refuse(same_validation(config))
    options = config.hf
    validation_path, validation_split = config.validation_path or path, options.validation_split or options.split
    if (validation_path, validation_split) != (path, options.split):
        if split == "validation":
            return _load(validation_path, options.name, validation_split, config)
        return _load(path, options.name, options.split, config)
    records = _load(path, options.name, options.split, config)
    return split_records(records, validation_size=config.validation_size, split=split, seed=seed)


def _load(path: str, name: str | None, split: str, config: Any) -> HuggingFaceDataset:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            "data.dataset: found 'hf', whose package 'datasets' is not installed; pip install 'archon-rl[datasets]'"
        ) from error
    where = f"data set {path!r}, split {split!r}"
    try:
        # Before version 4, datasets runs a data set's loading script, or prompts for permission.
        columns = datasets.load_dataset(path, name, split=split, trust_remote_code=False)
    except Exception as error:  # of datasets, pyarrow, fsspec or huggingface_hub
        raise ConfigError(
            f"data.path={path!r}, data.hf.name={name!r}, split {split!r}: datasets could not load it: "
            f"{str(error) or type(error).__name__}"
        ) from error
    if len(columns) == 0:
        raise DataError(f"{where}: found no records")
    dataset = HuggingFaceDataset(columns, where)
    # All records have the same columns. Their values are checked later, when all records are measured.
    with with_location(dataset.where(0)):
        fields_of(config).check(dataset[0])
    return dataset
