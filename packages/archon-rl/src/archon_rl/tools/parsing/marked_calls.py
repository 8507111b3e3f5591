"""Answers in which each call stands between two markers, with text around the calls."""

from __future__ import annotations

from collections.abc import Callable

from archon_core.contracts.tool_calls import ParsedAnswer, ToolCall
from archon_rl.tools.parsing.json_calls import MalformedCallError

BodyReader = Callable[[str, int], tuple[ToolCall, int]]
"""(text, position after the opening marker) -> the call and the position after its body; raises MalformedCallError."""


def parse_marked(text: str, opening: str, closing: str, read_body: BodyReader) -> ParsedAnswer:
    """The calls between ``opening`` and ``closing``.

    A call must be closed: an answer that the length limit cut contains no call that might be half of one. After a
    malformed call, reading continues behind the next closing marker.
    """
    if opening not in text:
        return ParsedAnswer(text)
    pieces: list[str] = []
    calls: list[ToolCall] = []
    problems: list[str] = []
    position, number = 0, 0
    while (start := text.find(opening, position)) >= 0:
        pieces.append(text[position:start])
        number += 1
        body = start + len(opening)
        try:
            call, end = read_body(text, body)
            end = skip_space(text, end)
            if not text.startswith(closing, end):
                raise MalformedCallError(f"found no {closing} after it")
        except MalformedCallError as error:
            problems.append(f"tool call {number}: {error}")
            close = text.find(closing, body)
            position = len(text) if close < 0 else close + len(closing)
        else:
            calls.append(call)
            position = end + len(closing)
    pieces.append(text[position:])
    content = "\n".join(filter(None, (piece.strip() for piece in pieces)))
    return ParsedAnswer(content, tuple(calls), tuple(problems))


def skip_space(text: str, position: int) -> int:
    """The next position that holds no white space."""
    while position < len(text) and text[position].isspace():
        position += 1
    return position
