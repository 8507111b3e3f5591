"""A call of a tool in the process where the tool is imported, and its result."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ToolResult:
    """The result of a call.

    Attributes:
        text: for the model.
        failed: whether the tool had no result, and ``text`` says why.
    """

    text: str
    failed: bool = False


def failure(reason: str) -> ToolResult:
    """The result of a call that failed."""
    return ToolResult(f"Error: {reason}", failed=True)


def call_tool(function: Callable[..., Any], arguments: Mapping[str, Any], *, longest: int) -> ToolResult:
    """Call a tool; its exceptions become text.

    Args:
        longest: characters of a result to keep.
    """
    try:
        value = function(**arguments)
        if inspect.isawaitable(value):
            value = asyncio.run(_awaited(value))
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except Exception as error:
        return failure(shortened(described(error), longest))
    except SystemExit:
        return failure("the tool ended its process")
    # A surrogate would fail in every tokenizer.
    return ToolResult(shortened(text.encode(errors="replace").decode(), longest))


def described(error: BaseException) -> str:
    """An exception in one line."""
    if isinstance(error, MemoryError):
        return "not enough memory"
    try:
        message = " ".join(str(error).encode(errors="replace").decode().split())
    except Exception:  # an exception of the tool whose text cannot be made
        message = ""
    name = type(error).__name__
    if name == "ExpressionError":
        return message
    return f"{name}: {message}" if message else name


def shortened(text: str, longest: int) -> str:
    """``text``, or its beginning and a note of how much is left out."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]}... ({len(text) - longest} more characters)"


async def _awaited(value: Any) -> Any:
    return await value
