"""Answers of the model as OpenAI's messages: content, reasoning, and calls of tools."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from archon_core.contracts.tool_calls import ReasoningParser, ToolCall, ToolParser
from archon_rl.agents.chat_messages import Message, normal_messages


@dataclass(frozen=True)
class ReadAnswer:
    """What was sampled, as the agent gets it.

    Attributes:
        content: text outside of reasoning and calls.
        reasoning: the model's reasoning; empty without a parser.
        tool_calls: OpenAI's objects.
        end: OpenAI's finish reason.
    """

    content: str
    reasoning: str
    tool_calls: tuple[Mapping[str, Any], ...]
    end: str

    def message(self) -> Message:
        """The answer in normal form."""
        fields = {"reasoning_content": self.reasoning, "tool_calls": list(self.tool_calls)}
        [message] = normal_messages([{"role": "assistant", "content": self.content, **fields}])
        return message


@dataclass(frozen=True)
class AnswerReader:
    """Reads sampled text.

    Attributes:
        tool_parser: reads calls of tools.
        reasoning_parser: separates reasoning; ``None`` leaves it in the content.
    """

    tool_parser: ToolParser
    reasoning_parser: ReasoningParser | None

    def read(
        self, text: str, stop_reason: str, *, tools: Sequence[Mapping[str, Any]] = (), one_call: bool = False
    ) -> ReadAnswer:
        """The answer in ``text``.

        Args:
            text: without special tokens and stop texts.
            stop_reason: of the completion.
            tools: on offer; without any, calls are text.
            one_call: keep only the first call.
        """
        reasoning, content = ("", text) if self.reasoning_parser is None else self.reasoning_parser(text)
        if not tools:
            return ReadAnswer(content, reasoning, (), stop_reason)
        parsed = self.tool_parser.parse(content, tools)
        calls = tuple(_openai_call(call) for call in parsed.calls)
        if not parsed.problems:
            content = parsed.content
        # A malformed call stays in the content, where the agent can see it.
        return ReadAnswer(content, reasoning, calls[:1] if one_call else calls, "tool_calls" if calls else stop_reason)


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first of ``stops``, which OpenAI's answers leave out."""
    places = [text.find(stop) for stop in stops if stop in text]
    return text[: min(places)] if places else text


def _openai_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
