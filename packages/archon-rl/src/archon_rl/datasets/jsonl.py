"""Records from JSON lines: one object per line, UTF-8.

The parser is stricter than Python's ``json``, which accepts ``NaN`` and duplicate names and raises other exceptions for
some files: every line is a valid object, or a ``DataError`` that starts with ``file:line``.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from archon_core.contracts.data import Dataset
from archon_core.errors import ConfigError, DataError
from archon_core.unique_names import NameTwiceError, unique_names
from archon_rl.datasets.records import ListDataset, Split, require_path, split_records
from archon_rl.fields import Fields, json_type, with_location
from archon_rl.preference_fields import PreferenceFields, fields_of

ONE_OBJECT = "every line must hold one JSON object"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MAGIC = {
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd archive: unpack it first",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"PAR1": "a Parquet file: data.dataset=hf reads a folder of these",
    codecs.BOM_UTF16_LE: "UTF-16: convert it to UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16: convert it to UTF-8",
}
"""Magic bytes of common file types -> description and fix."""


def jsonl_dataset(config: Any, *, split: Split, seed: int) -> Dataset:
    """The records of ``data.path``; held-out records come from ``data.validation_path``, or are
    ``data.validation_size`` records of ``data.path``.

    Raises:
        ConfigError: there is no path, or no such file.
        DataError: a line is not JSON, or a field is missing or invalid; the message starts with ``file:line``.
    """
    path = require_path(config, "jsonl")
    fields = fields_of(config)
    if config.validation_path and split == "validation":
        return read_jsonl(Path(config.validation_path), fields, option="data.validation_path")
    records = read_jsonl(Path(path), fields)
    if config.validation_path:
        return records
    return split_records(records, validation_size=config.validation_size, split=split, seed=seed)


def read_jsonl(path: Path, fields: Fields | PreferenceFields, *, option: str = "data.path") -> ListDataset:
    """All records of a file, each with valid fields. Empty lines are skipped.

    Args:
        fields: the reader of the records' fields.
        option: the option that names the file, for messages.

    Raises:
        ConfigError: the file is missing or unreadable.
        DataError: see ``jsonl_dataset``.
    """
    records, places = [], []
    for number, line in _lines(path, option):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        with with_location(where):
            record = parse_record(line)
            fields.check(record)
        records.append(record)
        places.append(where)
    if not records:
        raise DataError(f"{path}: found no records; {ONE_OBJECT}")
    return ListDataset(records, places)


def parse_record(line: bytes) -> Mapping[str, Any]:
    """Parse one line.

    Raises:
        DataError: the line is not UTF-8, not JSON or not an object, or the object has a duplicate name or an unpaired
            surrogate.
    """
    try:
        text = line.decode("utf-8")
        record = _DECODER.decode(text)
        if _SURROGATE.search(line):
            json.dumps(record, ensure_ascii=False).encode("utf-8")
    except DataError:  # a ValueError too
        raise
    except UnicodeDecodeError as error:
        kind = next((kind for magic, kind in _MAGIC.items() if line.startswith(magic)), "")
        raise DataError(
            f"not UTF-8: found byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line; "
            + (f"this is {kind}" if kind else "convert the file to UTF-8")
        ) from error
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(f"found {half}, an unpaired surrogate; write the whole pair, or remove it") from error
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error.msg} at column {error.colno}; {ONE_OBJECT}") from error
    except NameTwiceError as error:
        raise DataError(f"found the name {error} twice in one object; remove one") from error
    except RecursionError as error:
        raise DataError("found lists or objects nested too deeply to parse; flatten the record") from error
    except ValueError as error:
        raise DataError("found an integer of more than 4,300 digits; write it as text") from error
    if not isinstance(record, dict):
        raise DataError(f"found {json_type(record)}; {ONE_OBJECT}")
    return record


def _lines(path: Path, option: str) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and bytes of every line, without the file's byte order mark."""
    try:
        if not path.is_file():
            raise ConfigError(
                f"{option}: found no file {str(path)!r}; the data set 'jsonl' reads one file of JSON lines"
            )
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
    except OSError as error:
        raise ConfigError(
            f"{option}: cannot read the file {str(path)!r} ({error.strerror or error}); check path and permissions"
        ) from error


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise DataError(f"found the number {text}, too large for a float; write it as text")
    return number


def _constant(text: str) -> float:
    raise DataError(f"not JSON: found {text}; write null or a number, or leave it out")


_DECODER = json.JSONDecoder(object_pairs_hook=unique_names, parse_float=_number, parse_constant=_constant)
