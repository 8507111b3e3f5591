"""Checks names in a checkpoint's files: none twice in a JSON object, none that leads out of the folder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class NameTwiceError(ValueError):
    """A JSON object has a name twice; ``json`` would keep the last value."""


def unique_names(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """An ``object_pairs_hook`` for ``json``. Raises NameTwiceError."""
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise NameTwiceError(repr(name))
        result[name] = value
    return result


def is_plain_name(name: str) -> bool:
    """Whether ``name`` is a plain file name on every system: no path, not absolute, not ``..``."""
    return bool(name) and name not in (".", "..") and not any(sign in name for sign in "/\\:\0")
