"""JSON schemas of tools, compared with the schemas that transformers makes for chat templates."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from transformers.utils import get_json_schema

from archon_core.errors import ConfigError
from archon_rl.tools.calculator import calculator
from archon_rl.tools.python_expression import python
from archon_rl.tools.schema import argument_problem, tool_schema


def search(query: str, count: int, share: float = 0.5, exact: bool = False, places: list[str] | None = None) -> str:
    """Find text in places.

    Args:
        query: What to find.
        count: How many
            at most.
        share: Of the text.
        exact: Whether case counts.
        places: Where.
    """
    return query


@pytest.mark.parametrize("function", [calculator, python, search])
def test_schemas_equal_those_of_transformers(function: Any) -> None:
    schema, expected = tool_schema(function.__name__, function), get_json_schema(function)
    for one in (schema, expected):
        one["function"].pop("return", None)
        for parameter in one["function"]["parameters"]["properties"].values():
            if "anyOf" in parameter or parameter.pop("nullable", False):  # transformers has a field for null
                parameter.pop("anyOf", None), parameter.pop("type", None), parameter.pop("items", None)
    assert schema == expected


def test_a_given_schema_replaces_hints_and_docstring() -> None:
    def tool(**arguments: Any) -> str:
        return str(arguments)

    tool.tool_schema = {"description": "Do it.", "parameters": {"type": "object", "properties": {}}}  # type: ignore[attr-defined]
    assert tool_schema("mine", tool)["function"] == {"name": "mine", **tool.tool_schema}  # type: ignore[attr-defined]
    tool.tool_schema = {"parameter": {}}  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="as its tool_schema; allowed is a mapping with parameters"):
        tool_schema("mine", tool)


def test_what_json_cannot_express_is_an_error() -> None:
    def of_bytes(data: bytes) -> str:
        return str(data)

    def of_any_number(*numbers: int) -> str:
        return str(numbers)

    with pytest.raises(ConfigError, match="found the type <class 'bytes'> for 'data'"):
        tool_schema("t", of_bytes)
    with pytest.raises(ConfigError, match="found the parameter 'numbers', which has no name"):
        tool_schema("t", of_any_number)


def test_arguments_are_checked_by_the_schema() -> None:
    def tool(a: float, b: int | str, c: list[int] | Literal["all"] = "all", d: Any = None) -> str:
        return f"{a}{b}{c}{d}"

    schema = tool_schema("t", tool)
    for arguments in ({"a": 1, "b": "x"}, {"a": 1.5, "b": 2.0, "c": [1]}, {"a": 1, "b": 1, "c": "all", "d": {}}):
        assert argument_problem(schema, arguments) == ""
    assert argument_problem(schema, {"a": "1", "b": 1}) == "the argument 'a' must be of type number"
    assert argument_problem(schema, {"a": 1, "b": 1.5}) == "the argument 'b' must be of type integer or string"
    assert argument_problem(schema, {"a": 1, "b": 1, "c": "some"}) == "the argument 'c' must be of type array"
