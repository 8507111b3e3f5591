"""The JSON format of Llama 3: the answer is a call ``{"name": ..., "parameters": {...}}``, or some with ``;`` between
them. ``<|python_tag|>`` may stand before the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from archon_core.contracts.tool_calls import ParsedAnswer, ToolCall
from archon_rl.tools.parsing.json_calls import MalformedCallError, call_of, read_object, written_call
from archon_rl.tools.parsing.marked_calls import skip_space

TAG = "<|python_tag|>"
PARAMETERS = "parameters"

_BEGIN = re.compile(r'\s*\{\s*"(name|type|parameters|arguments)"')
"""How a call begins. Other JSON is an ordinary answer, and so is an object without arguments."""

_ARGUMENTS = {PARAMETERS, "arguments"}


class LlamaJsonParser:
    """A ``ToolParser``."""

    stop = ()

    def parse(self, text: str, tools: Sequence[Mapping[str, Any]] = ()) -> ParsedAnswer:
        """See ``ToolParser``."""
        before, tag, after = text.partition(TAG)
        if not tag and not _BEGIN.match(text):
            return ParsedAnswer(text)
        content, body = (before.strip(), after) if tag else ("", text)
        calls: list[ToolCall] = []
        position = skip_space(body, 0)
        try:
            while True:
                value, position = read_object(body, position)
                if not tag and not calls and not _ARGUMENTS & value.keys():
                    return ParsedAnswer(text)  # an answer that is JSON
                calls.append(call_of(value, (PARAMETERS, "arguments")))
                position = skip_space(body, position)
                if position == len(body):
                    return ParsedAnswer(content, tuple(calls))
                if body[position] != ";":
                    raise MalformedCallError("found text before it; separate calls with ';'")
                position = skip_space(body, position + 1)
        except MalformedCallError as error:
            return ParsedAnswer(content, tuple(calls), (f"tool call {len(calls) + 1}: {error}",))

    def write(self, calls: Sequence[ToolCall]) -> str:
        """See ``ToolParser``."""
        return "; ".join(written_call(call, PARAMETERS) for call in calls)

    def write_results(self, results: Sequence[str]) -> str:
        """See ``ToolParser``."""
        return written_outputs(results)


def written_outputs(results: Sequence[str]) -> str:
    """Results, separated by line breaks."""
    return "\n" + "".join(f"{result}\n" for result in results)


PARSER = LlamaJsonParser()
