"""The pythonic format of Llama 3.2 and 4: the answer is a list of calls with literal arguments, such as
``[get_weather(city="Oslo"), add(a=1, b=2)]``, which may stand between ``<|python_start|>`` and ``<|python_end|>``.

The list is parsed into a syntax tree; nothing is evaluated.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from archon_core.contracts.tool_calls import ParsedAnswer, ToolCall
from archon_rl.tools.parsing.json_calls import MalformedCallError
from archon_rl.tools.parsing.llama_json import written_outputs

MAX_LENGTH = 100_000
"""Characters of a list of calls."""

_OPENING, _CLOSING = "<|python_start|>", "<|python_end|>"
_BEGIN = re.compile(r"\[\s*[A-Za-z_][\w.]*\s*\(")
_CONSTANTS = {"true": True, "false": False, "null": None}


class PythonicParser:
    """A ``ToolParser``."""

    stop = ()

    def parse(self, text: str, tools: Sequence[Mapping[str, Any]] = ()) -> ParsedAnswer:
        """See ``ToolParser``."""
        before, opening, after = text.partition(_OPENING)
        content, body = (before, after.partition(_CLOSING)[0]) if opening else ("", text)
        body = body.strip()
        if not opening and not _BEGIN.match(body):
            return ParsedAnswer(text)
        try:
            return ParsedAnswer(content.strip(), tuple(_calls(body)))
        except MalformedCallError as error:
            return ParsedAnswer(content.strip(), (), (f"tool calls: {error}",))

    def write(self, calls: Sequence[ToolCall]) -> str:
        """See ``ToolParser``."""
        written = (
            f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})" for call in calls
        )
        return f"[{', '.join(written)}]"

    def write_results(self, results: Sequence[str]) -> str:
        """See ``ToolParser``."""
        return written_outputs(results)


def _calls(body: str) -> list[ToolCall]:
    if len(body) > MAX_LENGTH:
        raise MalformedCallError(f"found {len(body)} characters; at most {MAX_LENGTH} are allowed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as about an invalid escape in a string
            tree = ast.parse(body, mode="eval").body
        if not isinstance(tree, ast.List):
            raise MalformedCallError("found no list; write [name(argument=value), ...]")
        return [_call(item) for item in tree.elts]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, MalformedCallError):
            raise
        reason = error.msg if isinstance(error, SyntaxError) else "it is nested too deeply or has an invalid character"
        raise MalformedCallError(f"cannot parse the list: {reason}") from None


def _call(item: ast.expr) -> ToolCall:
    if not isinstance(item, ast.Call) or not isinstance(item.func, ast.Name | ast.Attribute):
        raise MalformedCallError("found an item that is no call; write [name(argument=value), ...]")
    name = ast.unparse(item.func)
    if item.args or any(keyword.arg is None for keyword in item.keywords):
        raise MalformedCallError(f"found an argument of {name} without its name; write {name}(argument=value)")
    return ToolCall(name, {str(keyword.arg): _literal(keyword.value) for keyword in item.keywords})


def _literal(node: ast.expr) -> Any:
    """A literal as a value of JSON."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            if isinstance(value, float) and value in (float("inf"),):
                raise MalformedCallError("found a number that is too large")
            if isinstance(value, str):
                _check_text(value)
            return value
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            if not isinstance(value, bool):
                return -_literal(ast.Constant(value))
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            if all(isinstance(key, ast.Constant) and isinstance(key.value, str) for key in keys):
                return {_literal(key): _literal(value) for key, value in zip(keys, values, strict=True) if key}
    raise MalformedCallError("found an argument that is no literal; write text, numbers, lists or objects")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MalformedCallError("found a string with half of a surrogate pair") from None


PARSER = PythonicParser()
