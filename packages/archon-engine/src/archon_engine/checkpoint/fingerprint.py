"""A fingerprint of a checkpoint folder, by which two machines find out whether they have the same model.

It covers the configuration, and of every tensor its name, type, shape and a few of its bytes. So it takes moments for
any size, and notices other weights of the same architecture. It does not find a damaged file; checksums do
(``archon_engine.checkpoint.seal``).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from archon_core.errors import DamagedError
from archon_engine.checkpoint.weight_files import INDEX_FILE, SINGLE_FILE

SAMPLE_BYTES = 64
SAMPLES = 3
"""Places in a tensor from which bytes are taken: its beginning, its middle and its end."""

UNRELATED = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures")
"""Entries of ``config.json`` that do not change what the model computes, or that the weights repeat."""


def checkpoint_fingerprint(folder: Path) -> str:
    """The fingerprint of a folder in Hugging Face format; empty if it has no safetensors files.

    The division of the weights into files does not change it.

    Raises:
        DamagedError: a file of the folder is missing or unreadable.
    """
    try:
        files = _weight_files(folder)
        if not files:
            return ""
        entries = sorted(entry for file in files for entry in _entries(folder / file))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise DamagedError(f"checkpoint {folder}: cannot read it ({error}); copy it again") from error
    kept = {name: value for name, value in config.items() if name not in UNRELATED}
    return hashlib.sha256(json.dumps([kept, entries], sort_keys=True).encode()).hexdigest()


def _weight_files(folder: Path) -> list[str]:
    if (folder / INDEX_FILE).is_file():
        index: dict[str, Any] = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        return sorted(set(index["weight_map"].values()))
    return [SINGLE_FILE] if (folder / SINGLE_FILE).is_file() else []


def _entries(path: Path) -> Iterator[tuple[str, str, list[int], str]]:
    """Name, type, shape and sampled bytes of every tensor in a file."""
    with path.open("rb") as file:
        [size] = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                yield name, entry["dtype"], entry["shape"], _sample(file, 8 + size + start, end - start)


def _sample(file: BinaryIO, start: int, length: int) -> str:
    last = max(0, length - SAMPLE_BYTES)
    parts = []
    for number in range(SAMPLES):
        file.seek(start + last * number // (SAMPLES - 1))
        parts.append(file.read(min(SAMPLE_BYTES, length)).hex())
    return "".join(parts)
