"""Records from JSON lines: one object per line, UTF-8."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archon_core.contracts.data import Dataset
from archon_core.errors import ConfigError, DataError
from archon_rl.datasets.records import ListDataset, Split, check_keys, cut, require_path


def jsonl_dataset(config: Any, *, split: Split, seed: int) -> Dataset:
    """The records of ``data.path``; held-out ones from ``data.validation_path``, or ``data.validation_size`` of them.

    Raises:
        ConfigError: there is no path, or no such file.
        DataError: a line is not JSON or lacks a field; the message starts with ``file:line``.
    """
    path = require_path(config, "jsonl", "train.jsonl")
    keys = (config.prompt_key, config.answer_key)
    if config.validation_path:
        return ListDataset(read_jsonl(Path(path if split == "train" else config.validation_path), keys))
    return cut(
        ListDataset(read_jsonl(Path(path), keys)), validation_size=config.validation_size, split=split, seed=seed
    )


def read_jsonl(path: Path, keys: tuple[str, ...]) -> list[Mapping[str, Any]]:
    """All records of a file, each with the fields ``keys``. Empty lines are skipped."""
    if not path.is_file():
        raise ConfigError(f"data.path: found no file {str(path)!r}; the dataset 'jsonl' reads one file of JSON lines")
    records = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{where}: not JSON: {error.msg} at column {error.colno}; every line must hold one JSON object"
                ) from error
            check_keys(record, keys, where)
            records.append(record)
    if not records:
        raise DataError(f"{path}: found no records; every line must hold one JSON object")
    return records
