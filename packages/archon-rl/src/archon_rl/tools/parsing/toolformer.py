"""The plain-text format of Toolformer (arXiv:2302.04761, section 2): ``[calculator(400/1400)->0.29]``.

The model writes up to the arrow, the result and the bracket are put after it, and the model writes on. For models
without a chat template. A call has one argument, the first parameter of its tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from archon_core.contracts.tool_calls import ParsedAnswer, ToolCall
from archon_rl.tools.parsing.json_calls import MalformedCallError, read_object
from archon_rl.tools.parsing.schemas import parameter_types

ARROW = "->"
DEFAULT_PARAMETER = "input"
"""Argument of a tool that is unknown or has no parameters."""

_OPENING = re.compile(r"\[([A-Za-z_]\w*)\(")
_END = re.compile(r"\)\s*->\s*\Z")
_NO_CALL = "tool call: found no [name(argument) before the arrow"


class ToolformerParser:
    """A ``ToolParser``."""

    stop = (ARROW,)

    def parse(self, text: str, tools: Sequence[Mapping[str, Any]] = ()) -> ParsedAnswer:
        """See ``ToolParser``. Only a call at the end of the text is one that waits for its result."""
        end = _END.search(text)
        if end is None:
            if text.rstrip().endswith(ARROW):
                return ParsedAnswer(text, (), (_NO_CALL,))
            return ParsedAnswer(text)
        openings = list(_OPENING.finditer(text, 0, end.start()))
        if not openings:
            return ParsedAnswer(text, (), (_NO_CALL,))
        opening = openings[-1]  # an argument may contain brackets, but no other call
        name, written = opening[1], text[opening.end() : end.start()]
        content = text[: opening.start()].strip()
        try:
            return ParsedAnswer(content, (ToolCall(name, _arguments(name, written, tools)),))
        except MalformedCallError as error:
            return ParsedAnswer(content, (), (f"tool call: {error}",))

    def write(self, calls: Sequence[ToolCall]) -> str:
        """See ``ToolParser``; the format has one call per answer, so the last one counts."""
        return " ".join(
            f"[{call.name}({', '.join(_written(value) for value in call.arguments.values())}){ARROW}" for call in calls
        )

    def write_results(self, results: Sequence[str]) -> str:
        """See ``ToolParser``."""
        return "; ".join(results) + "]"


def _arguments(name: str, written: str, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    types = parameter_types(tools, name)
    if not written and not types:
        return {}
    first, allowed = next(iter(types.items()), (DEFAULT_PARAMETER, frozenset[str]()))
    if not allowed or "string" in allowed:
        return {first: written}
    value, end = read_object(written.strip())
    if end != len(written.strip()):
        raise MalformedCallError(f"found more than the {' or '.join(sorted(allowed))} that {name} takes")
    return {first: value}


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


PARSER = ToolformerParser()
