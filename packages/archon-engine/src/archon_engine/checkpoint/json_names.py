"""JSON objects with each name once: ``json`` itself would keep the last of two."""

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
