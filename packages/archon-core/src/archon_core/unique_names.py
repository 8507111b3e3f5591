"""Strict reading of JSON objects: ``json`` keeps the last of two values with one name; here that is an error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class NameTwiceError(ValueError):
    """A JSON object has a name twice. The text is the name, quoted."""


def unique_names(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """An ``object_pairs_hook`` for ``json``. Raises NameTwiceError."""
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise NameTwiceError(repr(name))
        result[name] = value
    return result
