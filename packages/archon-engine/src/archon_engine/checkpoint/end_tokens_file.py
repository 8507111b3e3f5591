"""Writes the tokens that end a completion into a model folder, where inference servers and ``transformers`` find
them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from archon_core.models.end_tokens import GENERATION_CONFIG, folder_ends
from archon_core.models.json_file import read_entries
from archon_engine.checkpoint.publication import publish_text


def write_ends(folder: Path, ids: Sequence[int], *, like: Path | None = None) -> bool:
    """Set the end tokens of the model in ``folder``; returns whether its files had to change.

    Args:
        folder: gets a ``generation_config.json``, or a new ``eos_token_id`` in the existing one.
        ids: the end tokens, at least one.
        like: a folder whose ``generation_config.json``, if any, provides the other entries; ``None`` for ``folder``.

    Raises:
        ModelError: a file cannot be read.
    """
    source = (like or folder) / GENERATION_CONFIG
    entries = read_entries(source) if source.is_file() else {}
    if (folder / GENERATION_CONFIG).is_file() or (folder / "config.json").is_file():
        found = folder_ends(folder).ids
        if set(found) == set(ids):
            return False
    entries["eos_token_id"] = ids[0] if len(ids) == 1 else list(ids)
    publish_text(folder / GENERATION_CONFIG, json.dumps(entries, indent=2) + "\n")
    return True
