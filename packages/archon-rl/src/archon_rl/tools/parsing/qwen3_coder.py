"""The format of Qwen3-Coder: a function and its parameters in tags, between ``<tool_call>`` and ``</tool_call>``.

Values are text without quotes. The tool's schema says which of them are numbers, booleans, lists or objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from archon_core.contracts.tool_calls import ParsedAnswer, ToolCall
from archon_rl.tools.parsing.hermes import CLOSING, OPENING, written_results
from archon_rl.tools.parsing.json_calls import MalformedCallError, read_object
from archon_rl.tools.parsing.marked_calls import parse_marked, skip_space
from archon_rl.tools.parsing.schemas import parameter_types

_FUNCTION = re.compile(r"<function=([^>\s]+)>")
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_FUNCTION_END = "</function>"


class Qwen3CoderParser:
    """A ``ToolParser``."""

    stop = ()

    def parse(self, text: str, tools: Sequence[Mapping[str, Any]] = ()) -> ParsedAnswer:
        """See ``ToolParser``."""
        return parse_marked(text, OPENING, CLOSING, lambda text, start: _read_body(text, start, tools))

    def write(self, calls: Sequence[ToolCall]) -> str:
        """See ``ToolParser``."""
        return "\n".join(_written(call) for call in calls)

    def write_results(self, results: Sequence[str]) -> str:
        """See ``ToolParser``."""
        return written_results(results)


def _read_body(text: str, start: int, tools: Sequence[Mapping[str, Any]]) -> tuple[ToolCall, int]:
    opened = _FUNCTION.match(text, skip_space(text, start))
    if opened is None:
        raise MalformedCallError("found no <function=NAME> after <tool_call>")
    name, position = opened[1], skip_space(text, opened.end())
    types = parameter_types(tools, name)
    arguments: dict[str, Any] = {}
    while parameter := _PARAMETER.match(text, position):
        arguments[parameter[1]] = _value(parameter[1], parameter[2], types.get(parameter[1], frozenset()))
        position = skip_space(text, parameter.end())
    if not text.startswith(_FUNCTION_END, position):
        raise MalformedCallError(f"found neither <parameter=NAME> ... </parameter> nor {_FUNCTION_END} in {name}")
    return ToolCall(name, arguments), position + len(_FUNCTION_END)


def _value(name: str, written: str, types: frozenset[str]) -> Any:
    if not types or "string" in types:
        return written
    try:
        value, end = read_object(written.strip())
        if end != len(written.strip()):
            raise MalformedCallError("text after the value")
    except MalformedCallError as error:
        raise MalformedCallError(f"parameter {name}: {error}; write a JSON {' or '.join(sorted(types))}") from None
    return value


def _written(call: ToolCall) -> str:
    parameters = "".join(
        f"<parameter={name}>\n{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}\n"
        "</parameter>\n"
        for name, value in call.arguments.items()
    )
    return f"{OPENING}\n<function={call.name}>\n{parameters}{_FUNCTION_END}\n{CLOSING}"


PARSER = Qwen3CoderParser()
