"""JSON schemas of tools, from type hints and docstrings, and the check of arguments against them."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union

from archon_core.errors import ConfigError

Schema = Mapping[str, Any]

_SIMPLE: Mapping[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",
    tuple: "array",
    dict: "object",
    type(None): "null",
}
_LISTS = (list, tuple, Sequence, set, frozenset)
_KINDS: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
_ARGUMENT = re.compile(r"^ {4}(?P<name>\w+)(?: \([^)]*\))?: *(?P<text>.*)$")
_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?):$")


def tool_schema(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    """The schema of a function, as chat templates get it.

    Raises:
        ConfigError: a parameter has no type hint, or one that JSON cannot express.
    """
    given = getattr(function, "tool_schema", None)
    if given is not None:
        return {"type": "function", "function": {"name": name, **_checked(name, given)}}
    description, texts = read_docstring(inspect.getdoc(function) or "")
    try:
        hints = typing.get_type_hints(function)
    except Exception as error:  # a hint is code of the user
        raise ConfigError(f"tool {name!r}: cannot read its type hints: {error}; correct them") from error
    properties: dict[str, Any] = {}
    required: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ConfigError(
                f"tool {name!r}: found the parameter {parameter.name!r}, which has no name in a call; allowed are "
                "parameters that can be given by name; or give the function an attribute tool_schema"
            )
        if parameter.name not in hints:
            raise ConfigError(
                f"tool {name!r}: found no type hint for {parameter.name!r}; allowed are str, int, float, bool, list, "
                "dict, Literal and unions of them; write one, or give the function an attribute tool_schema"
            )
        properties[parameter.name] = _schema_of(name, parameter.name, hints[parameter.name])
        if parameter.name in texts:
            properties[parameter.name]["description"] = texts[parameter.name]
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The description in a docstring, and that of each argument in its ``Args`` section."""
    description: list[str] = []
    arguments: dict[str, str] = {}
    section, current = "", ""
    for line in text.splitlines():
        if heading := _SECTION.match(line):
            section = heading[1]
        elif not section:
            description.append(line)
        elif section in ("Args", "Arguments", "Parameters"):
            if argument := _ARGUMENT.match(line):
                current = argument["name"]
                arguments[current] = argument["text"]
            elif current and line.strip():
                arguments[current] = f"{arguments[current]} {line.strip()}".strip()
    return "\n".join(description).strip(), arguments


def argument_problem(schema: Schema, arguments: Mapping[str, Any]) -> str:
    """What is wrong with the arguments of a call, for the model; empty if nothing is.

    Checks names, and the types of the first level. An integer is a number, and a whole number an integer.
    """
    parameters = schema["function"].get("parameters") or {}
    properties = parameters.get("properties", {})
    missing = [name for name in parameters.get("required", ()) if name not in arguments]
    if missing:
        return f"the argument {missing[0]!r} is missing"
    for name, value in arguments.items():
        if name not in properties:
            return f"found the argument {name!r}; allowed are {', '.join(properties) or 'none'}"
        problem = _value_problem(properties[name], value)
        if problem:
            return f"the argument {name!r} {problem}"
    return ""


def _value_problem(schema: Schema, value: Any) -> str:
    if "enum" in schema and value not in schema["enum"]:
        return f"must be one of {', '.join(map(repr, schema['enum']))}"
    alternatives = schema.get("anyOf")
    if alternatives:
        problems = [_value_problem(alternative, value) for alternative in alternatives]
        return "" if "" in problems else problems[0]
    allowed = schema.get("type")
    names = [allowed] if isinstance(allowed, str) else list(allowed or ())
    if not names or any(_is_of(value, name) for name in names):
        return ""
    return f"must be of type {' or '.join(names)}"


def _is_of(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _KINDS.get(name, (object,)))


def _schema_of(tool: str, parameter: str, hint: Any) -> dict[str, Any]:
    if hint is Any:
        return {}
    if hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        kinds = {_SIMPLE[type(value)] for value in arguments}
        return {"type": kinds.pop() if len(kinds) == 1 else sorted(kinds), "enum": list(arguments)}
    if origin in (Union, types.UnionType):
        alternatives = [_schema_of(tool, parameter, one) for one in arguments]
        if all(set(one) == {"type"} for one in alternatives):
            return {"type": [one["type"] for one in alternatives]}
        return {"anyOf": alternatives}
    if origin in _LISTS:
        items = [one for one in arguments if one is not Ellipsis]
        return {"type": "array", **({"items": _schema_of(tool, parameter, items[0])} if len(items) == 1 else {})}
    if origin in (dict, Mapping):
        return {"type": "object"}
    raise ConfigError(
        f"tool {tool!r}: found the type {hint!r} for {parameter!r}, which JSON cannot express; allowed are str, int, "
        "float, bool, list, dict, Literal and unions of them; or give the function an attribute tool_schema"
    )


def _checked(name: str, given: Any) -> Mapping[str, Any]:
    allowed = {"description", "parameters"}
    if not isinstance(given, Mapping) or not set(given) <= allowed or "parameters" not in given:
        raise ConfigError(
            f"tool {name!r}: found {given!r} as its tool_schema; allowed is a mapping with parameters (a JSON schema) "
            "and description; correct it"
        )
    return given
