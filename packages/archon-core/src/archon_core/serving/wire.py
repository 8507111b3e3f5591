"""Dataclasses as JSON objects: what trainers and servers send each other is checked field by field when it arrives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from archon_core.errors import ServerError

T = TypeVar("T")


def to_data(value: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON values; nested dataclasses become objects, tuples lists."""
    return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}


def fields_of(kind: type[T], data: Any, /, **checks: type | tuple[type, ...]) -> dict[str, Any]:
    """The fields of ``kind`` in a received JSON object. Fields with a default may be missing; unknown ones are ignored,
    because a newer sender may have more.

    Args:
        kind: the dataclass that the object describes.
        data: the received value.
        checks: field -> required type or types. ``bool`` never passes as ``int``.

    Raises:
        ServerError: a field is missing or has another type.
    """
    name = kind.__name__
    if not isinstance(data, Mapping):
        raise ServerError(f"{name}: found {type(data).__name__}; allowed is a JSON object; check the sender's version")
    known = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    missing = [
        field.name
        for field in known.values()
        if field.name not in data
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ServerError(f"{name}: found no {', '.join(missing)}; check the sender's version of archon-core")
    found = {field: value for field, value in data.items() if field in known}
    for field, allowed in checks.items():
        if field in found and not _is_of(found[field], allowed):
            wanted = " or ".join(one.__name__ for one in (allowed if isinstance(allowed, tuple) else (allowed,)))
            raise ServerError(
                f"{name}.{field}: found {found[field]!r}; allowed is {wanted}; check the version of the sender"
            )
    return found


def _is_of(value: Any, allowed: type | tuple[type, ...]) -> bool:
    kinds = allowed if isinstance(allowed, tuple) else (allowed,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (isinstance(value, int) and float in kinds)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_data(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, frozenset | set):
        return sorted(value)
    return value
