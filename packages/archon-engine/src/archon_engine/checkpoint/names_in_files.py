"""Names that a checkpoint's own files contain: each once in a JSON object, and none that leads out of the folder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class NameTwiceError(ValueError):
    """A JSON object with one name twice, of which ``json`` would keep the last."""


def unique_names(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """An ``object_pairs_hook`` for ``json``. Raises NameTwiceError."""
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise NameTwiceError(repr(name))
        result[name] = value
    return result


def is_plain_name(name: str) -> bool:
    """Whether ``name`` is the name of an entry of a folder, on every system: no path, not absolute, not ``..``."""
    return bool(name) and name not in (".", "..") and not any(sign in name for sign in "/\\:\0")
