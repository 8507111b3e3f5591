"""Records from Hugging Face ``datasets``, which is an optional dependency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from archon_core.contracts.data import Dataset
from archon_core.errors import ConfigError, DataError
from archon_rl.datasets.records import Split, check_keys, cut, require_path


@dataclass(frozen=True)
class HuggingFaceDataset:
    """A loaded split as records. ``columns`` is a ``datasets.Dataset``."""

    columns: Any

    def __len__(self) -> int:
        return len(self.columns)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.columns[index]


def huggingface_dataset(config: Any, *, split: Split, seed: int) -> Dataset:
    """A split of the data set ``data.path`` (hub id or local folder), as ``data.hf`` says.

    Held-out records are ``data.hf.validation_split`` of ``data.validation_path``, each of which defaults to what is
    trained on; without either, ``data.validation_size`` records are held out.

    Raises:
        ConfigError: ``datasets`` is not installed, there is no path, the data set cannot be loaded, or
            the held-out records would be those trained on.
        DataError: the records lack a field.
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
    try:
        columns = datasets.load_dataset(path, name, split=split)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise ConfigError(
            f"data.path={path!r}, data.hf.name={name!r}, split {split!r}: datasets could not load it: {error}"
        ) from error
    where = f"data set {path!r}, split {split!r}"
    if len(columns) == 0:
        raise DataError(f"{where}: found no records")
    check_keys(columns[0], (config.prompt_key, config.answer_key), where)
    return HuggingFaceDataset(columns)
