"""Messages of OpenAI's chats: their normal form, and whether one conversation continues another.

Clients return an answer in a form of their own: without fields that they do not know, with ``null`` for an empty
content, or with other white space in the JSON of a call's arguments. The normal form has none of these differences.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from archon_core.errors import DataError

Message = Mapping[str, Any]
Matcher = Callable[[Sequence[Message], Sequence[Message]], bool]
"""Whether two lists of messages, of equal length, are the same conversation."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_TEXTS = ("text", "input_text", "output_text", "refusal")


def normal_messages(messages: Any) -> tuple[Message, ...]:
    """The messages of a request in normal form.

    Raises:
        DataError: they are no messages, or hold something other than text.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise DataError("messages: found no list of messages; send at least one")
    return tuple(_normal(message, number) for number, message in enumerate(messages, 1))


def same_messages(earlier: Sequence[Message], later: Sequence[Message]) -> bool:
    """The default ``Matcher``: equal roles, texts and calls. White space around the assistant's texts does not count,
    because many agents strip it."""
    return len(earlier) == len(later) and all(map(_same, earlier, later))


def for_template(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as chat templates read them: the arguments of calls as objects, not as JSON."""
    return [_for_template(message) for message in messages]


def _normal(message: Any, number: int) -> Message:
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        found = message.get("role") if isinstance(message, Mapping) else type(message).__name__
        raise DataError(f"messages: message {number}: found the role {found!r}; allowed are {', '.join(ROLES)}")
    role = (
        "system" if message["role"] == "developer" else message["role"]
    )  # OpenAI's newer name, which no template knows
    normal: dict[str, Any] = {"role": role, "content": _text(message.get("content"), number)}
    if message.get("tool_calls"):
        normal["tool_calls"] = [_normal_call(call, number) for call in message["tool_calls"]]
    for name in ("name", "tool_call_id", "reasoning_content"):
        if message.get(name):
            normal[name] = message[name]
    return normal


def _text(content: Any, number: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, Sequence) else [content]:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text", part.get("refusal")) if isinstance(part, Mapping) else None
        if kind not in _TEXTS or not isinstance(text, str):
            raise DataError(
                f"messages: message {number}: found a part of type {kind!r}; allowed are texts: the model reads no "
                "images and no sound"
            )
        texts.append(text)
    return "".join(texts)


def _normal_call(call: Any, number: int) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(
            f"messages: message {number}: tool_calls: found a call without a function's name; allowed are objects "
            '{"id", "type": "function", "function": {"name", "arguments"}}'
        )
    arguments = function.get("arguments") or "{}"
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": call.get("id"), "type": "function", "function": {"name": function["name"], "arguments": text}}


def _same(one: Message, other: Message) -> bool:
    return _identity(one) == _identity(other)


def _identity(message: Message) -> tuple[Any, ...]:
    content = message["content"].strip() if message["role"] == "assistant" else message["content"]
    calls = [(call["id"], call["function"]["name"], _arguments(call)) for call in message.get("tool_calls", ())]
    return message["role"], content, message.get("tool_call_id"), calls


def _arguments(call: Mapping[str, Any]) -> Any:
    """The arguments of a call as JSON's value, or their text if it is no JSON."""
    text = call["function"]["arguments"]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _for_template(message: Message) -> dict[str, Any]:
    if "tool_calls" not in message:
        return dict(message)
    calls = [
        {**call, "function": {"name": call["function"]["name"], "arguments": _arguments(call)}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}
