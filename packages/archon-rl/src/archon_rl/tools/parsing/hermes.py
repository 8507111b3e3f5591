"""The format of Hermes and Qwen models: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archon_core.contracts.tool_calls import ParsedAnswer, ToolCall
from archon_rl.tools.parsing.json_calls import call_of, read_object, written_call
from archon_rl.tools.parsing.marked_calls import parse_marked, skip_space

OPENING, CLOSING = "<tool_call>", "</tool_call>"
ARGUMENTS = "arguments"


class HermesParser:
    """A ``ToolParser``."""

    stop = ()

    def parse(self, text: str, tools: Sequence[Mapping[str, Any]] = ()) -> ParsedAnswer:
        """See ``ToolParser``."""
        return parse_marked(text, OPENING, CLOSING, _read_body)

    def write(self, calls: Sequence[ToolCall]) -> str:
        """See ``ToolParser``."""
        return "\n".join(f"{OPENING}\n{written_call(call, ARGUMENTS)}\n{CLOSING}" for call in calls)

    def write_results(self, results: Sequence[str]) -> str:
        """See ``ToolParser``."""
        return written_results(results)


def written_results(results: Sequence[str]) -> str:
    """Results between the markers that chat templates of Hermes and Qwen put around them."""
    return "\n" + "\n".join(f"<tool_response>\n{result}\n</tool_response>" for result in results) + "\n"


def _read_body(text: str, start: int) -> tuple[ToolCall, int]:
    value, end = read_object(text, skip_space(text, start))
    return call_of(value, (ARGUMENTS, "parameters")), end


PARSER = HermesParser()
