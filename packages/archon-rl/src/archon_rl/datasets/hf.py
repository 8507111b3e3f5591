"""Records from Hugging Face ``datasets``, which is an optional dependency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from archon_core.contracts.data import Dataset
from archon_core.errors import ConfigError, DataError
from archon_rl.datasets.records import Split, cut, require_path
from archon_rl.fields import Fields, located


@dataclass(frozen=True)
class HuggingFaceDataset:
    """A loaded split as records.

    Attributes:
        columns: a ``datasets.Dataset``.
        name: what the split is called in messages.
    """

    columns: Any
    name: str

    def __len__(self) -> int:
        return len(self.columns)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """The record. Raises DataError when ``datasets`` cannot decode it."""
        try:
            return self.columns[index]
        except Exception as error:  # decoders of images, audio and archives raise their own types
            raise DataError(f"{self.where(index)}: datasets could not decode it: {error}") from error

    def where(self, index: int) -> str:
        """The name of a record in messages."""
        return f"{self.name}, record {index} (counted from 0)"


def huggingface_dataset(config: Any, *, split: Split, seed: int) -> Dataset:
    """A split of the data set ``data.path`` (hub id or local folder), as ``data.hf`` says.

    Held-out records are ``data.hf.validation_split`` of ``data.validation_path``, each of which defaults to what is
    trained on; without either, ``data.validation_size`` records are held out.

    Raises:
        ConfigError: ``datasets`` is not installed, there is no path, the data set cannot be loaded, or
            the held-out records would be those trained on.
        DataError: the records lack a field, or the first one cannot be used.
    """
    path = require_path(config, "hf", "openai/gsm8k")
    options = config.hf
    validation_path, validation_split = config.validation_path or path, options.validation_split or options.split
    if (validation_path, validation_split) != (path, options.split):
        if split == "validation":
            return _load(validation_path, options.name, validation_split, config)
        return _load(path, options.name, options.split, config)
    if config.validation_path or options.validation_split:
        raise ConfigError(
            f"data.hf.validation_split: the held-out records are split {validation_split!r} of {validation_path!r}, "
            "which is what is trained on; name another split, or set data.validation_size alone"
        )
    records = _load(path, options.name, options.split, config)
    return cut(records, validation_size=config.validation_size, split=split, seed=seed)


def _load(path: str, name: str | None, split: str, config: Any) -> HuggingFaceDataset:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            "data.dataset: 'hf' needs the package datasets, which is not installed; pip install 'archon-rl[datasets]'"
        ) from error
    where = f"data set {path!r}, split {split!r}"
    try:
        # Versions before 4 would run a loading script of the data set, or ask whether to.
        columns = datasets.load_dataset(path, name, split=split, trust_remote_code=False)
    except Exception as error:  # those of datasets, pyarrow, the file systems and the hub's client
        raise ConfigError(
            f"data.path={path!r}, data.hf.name={name!r}, split {split!r}: datasets could not load it: "
            f"{str(error) or type(error).__name__}"
        ) from error
    if len(columns) == 0:
        raise DataError(f"{where}: found no records")
    dataset = HuggingFaceDataset(columns, where)
    # All records have the same columns; their values are checked with those of every data set, before the first step.
    with located(dataset.where(0)):
        Fields(config.prompt_key, config.answer_key).check(dataset[0])
    return dataset
