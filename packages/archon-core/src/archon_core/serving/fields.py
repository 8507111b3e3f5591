"""Checks of JSON objects that a server receives: unknown fields are refused by name, because an option that a server
silently ignores would change what a trainer learns from."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from archon_core.errors import DataError, did_you_mean


def check_fields(data: Any, known: Mapping[str, Any], *, where: str, required: Sequence[str] = ()) -> dict[str, Any]:
    """``data``, if it is a JSON object whose fields are known and have the right types.

    Args:
        data: a parsed JSON value.
        known: field -> type hint.
        where: what the object is, for messages.
        required: fields that must be there.

    Raises:
        DataError: it is not.
    """
    if not isinstance(data, dict):
        raise DataError(f"{where}: found {_described(data)}; allowed is a JSON object")
    for name, value in data.items():
        if name not in known:
            raise DataError(
                f"{where}: found unknown field {name!r}{did_you_mean(name, [*known])}; allowed are {', '.join(known)}"
            )
        if not _fits(value, known[name]):
            raise DataError(f"{where}: {name}: found {_described(value)}; allowed is {_allowed(known[name])}")
    for name in required:
        if name not in data:
            raise DataError(f"{where}: found no field {name!r}; add it")
    return data


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if origin is list:
        [of_items] = get_args(hint)
        if not isinstance(value, list):
            return False
        # A prompt has thousands of numbers.
        return all(type(item) is int for item in value) if of_items is int else all(_fits(i, of_items) for i in value)
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, int | float)
    return hint is Any or isinstance(value, hint)


def _allowed(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_allowed(one) for one in get_args(hint))
    if origin is list:
        return f"a list of {_allowed(get_args(hint)[0])}"
    names = {bool: "true or false", int: "an integer", float: "a number", str: "text", list: "a list"}
    return "null" if hint is type(None) else names.get(hint, str(hint))


def _described(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
