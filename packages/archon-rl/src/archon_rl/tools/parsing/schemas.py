"""What parsers read from the JSON schemas of tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def parameters_of(tools: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """Name -> schema of each parameter of a tool, in order; empty for an unknown tool."""
    for tool in tools:
        function = tool.get("function", tool)
        if function.get("name") == name:
            properties = (function.get("parameters") or {}).get("properties")
            return properties if isinstance(properties, Mapping) else {}
    return {}


def parameter_types(tools: Sequence[Mapping[str, Any]], name: str) -> dict[str, frozenset[str]]:
    """Name of each parameter of a tool -> the types of JSON schema that it allows; none if the schema does not say."""
    return {parameter: frozenset(_types(schema)) for parameter, schema in parameters_of(tools, name).items()}


def _types(schema: Any) -> set[str]:
    if not isinstance(schema, Mapping):
        return set()
    found = schema.get("type", ())
    types = {found} if isinstance(found, str) else set(found)
    for key in ("anyOf", "oneOf"):
        for alternative in schema.get(key, ()):
            types |= _types(alternative)
    return types
