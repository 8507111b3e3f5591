"""Calls written as JSON objects: the name of a tool and its arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from archon_core.contracts.tool_calls import ToolCall

NAME = "name"


class MalformedCallError(ValueError):
    """Text that is no call. The message is for the model."""


def read_object(text: str, start: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at ``start``, and the position after it.

    Unlike Python's own reading, ``NaN`` and ``Infinity`` are errors, and so is half of a surrogate pair, which no
    tokenizer can encode.

    Raises:
        MalformedCallError: there is no such value.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError:
        raise MalformedCallError("the JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise MalformedCallError(f"invalid JSON: {error.msg} at character {error.pos - start}") from None
    except ValueError as error:  # an integer of thousands of digits, NaN or an infinity
        raise MalformedCallError(f"invalid JSON: {str(error).partition(';')[0]}") from None
    if "\\u" in text[start:end]:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise MalformedCallError("invalid JSON: a string has half of a surrogate pair") from None
    return value, end


def call_of(value: Any, arguments_keys: Sequence[str]) -> ToolCall:
    """The call that a JSON value describes.

    Args:
        value: an object with ``name`` and arguments; the arguments may be the text of a JSON object, as in OpenAI's
            interface.
        arguments_keys: names that the arguments may have; a call without any has no arguments.

    Raises:
        MalformedCallError: it describes none.
    """
    expected = f'{{"name": NAME, "{arguments_keys[0]}": {{...}}}}'
    if not isinstance(value, Mapping):
        raise MalformedCallError(f"found {_kind(value)}; write an object {expected}")
    name = value.get(NAME)
    if not isinstance(name, str) or not name:
        raise MalformedCallError(f"found no name of a tool; write {expected}")
    arguments: Any = next((value[key] for key in arguments_keys if key in value), {})
    if isinstance(arguments, str):
        written = arguments.strip()
        arguments, end = read_object(written)
        if end != len(written):
            raise MalformedCallError(f"found text after the arguments of {name}; write an object")
    if not isinstance(arguments, Mapping):
        raise MalformedCallError(f"found {_kind(arguments)} as the arguments of {name}; write an object")
    return ToolCall(name, dict(arguments))


def written_call(call: ToolCall, arguments_key: str) -> str:
    """A call as a JSON object."""
    return json.dumps({NAME: call.name, arguments_key: dict(call.arguments)}, ensure_ascii=False)


def _kind(value: Any) -> str:
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", type(None): "null"}
    return kinds.get(type(value), "an object")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
