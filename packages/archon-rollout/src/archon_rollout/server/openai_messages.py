"""Messages and tools of OpenAI's chats, as chat templates expect them.

Templates render tools into the prompt and get the arguments of earlier calls as objects. Answers are plain text here:
whoever offers tools reads the calls in it, so ``tool_choice`` must be ``none``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from archon_core.errors import DataError

TOOL_FIELDS: Mapping[str, Any] = {"tools": list[dict] | None, "tool_choice": Any}
"""Fields of a chat's body that concern tools."""


def tools_of(body: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | None:
    """The tools that the prompt offers; ``None`` for none.

    Raises:
        DataError: the body asks for calls as ``tool_calls`` of the answer.
    """
    tools, choice = body.get("tools") or None, body.get("tool_choice")
    allowed = (None, "none", "auto") if tools is None else ("none",)
    if choice not in allowed:
        raise DataError(
            f"chat: tool_choice: found {choice!r}{' with tools' if tools else ''}; allowed is 'none': answers of this "
            "server are text; set it, and read the calls in the text"
        )
    return tools


def messages_of(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages for a chat template.

    Raises:
        DataError: one has no role, content other than text, or arguments of a call that are no JSON object.
    """
    return [_message(message, f"chat: messages[{place}]") for place, message in enumerate(body["messages"])]


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(message.get("role"), str):
        raise DataError(f"{where}: found no 'role'; allowed are objects with a 'role' and a 'content' of text")
    content = _text(message.get("content"), where, may_be_missing=bool(message.get("tool_calls")))
    rendered = {**message, "content": content}
    if message.get("tool_calls"):
        rendered["tool_calls"] = [_call(call, f"{where}.tool_calls") for call in message["tool_calls"]]
    return rendered


def _text(content: Any, where: str, *, may_be_missing: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and may_be_missing:
        return ""
    parts = content if isinstance(content, list) and content else [content]
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise DataError(
                f"{where}: content: found {kind!r}; allowed are text, and parts of the type 'text'; this server takes "
                "nothing else"
            )
    return "".join(part["text"] for part in parts)


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(f"{where}: found {call!r}; allowed are objects with a 'function' that has a 'name'")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise DataError(f"{where}: arguments: found no JSON ({error}); send a JSON object") from error
    if not isinstance(arguments, dict):
        raise DataError(f"{where}: arguments: found {arguments!r}; allowed is a JSON object")
    return {**call, "function": {**function, "arguments": arguments}}
