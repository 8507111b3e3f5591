"""Reads the JSON files of a model folder, such as ``config.json``. Imports neither torch nor transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from archon_core.errors import ModelError
from archon_core.unique_names import NameTwiceError, unique_names


def read_entries(file: Path) -> dict[str, Any]:
    """The entries of a model's JSON file.

    Raises:
        ModelError: the file is unreadable, not a JSON object, or has a name twice in one object.
    """
    try:
        entries = json.loads(file.read_bytes().decode("utf-8"), object_pairs_hook=unique_names)
    except NameTwiceError as error:
        raise ModelError(f"{file}: found the name {error} twice in one object; keep one of them") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: cannot read it as JSON ({error}); copy the file again") from error
    if not isinstance(entries, dict):
        raise ModelError(f"{file}: found {json_kind(entries)}; allowed is a JSON object; copy the file again")
    return entries


def json_kind(value: Any) -> str:
    """A JSON value for a message: its kind if it is a list or an object, otherwise the shortened value."""
    return {list: "a list", dict: "an object"}.get(type(value)) or json.dumps(value)[:60]
