"""Fields of OpenAI's completion and chat requests. A field that a server does not implement is refused by name, unless
its value asks for nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archon_core.errors import DataError
from archon_core.serving.fields import check_fields

NUMBER, TEXT = float | None, str | None

_COMMON: dict[str, Any] = {
    "model": TEXT,
    "max_tokens": int | None,
    "temperature": NUMBER,
    "top_p": NUMBER,
    "n": int | None,
    "seed": int | None,
    "stop": str | list[str] | None,
    "stream": bool | None,
    "stream_options": dict | None,
    "frequency_penalty": NUMBER,
    "top_k": int | None,
    "min_tokens": int | None,
    "stop_token_ids": list[int] | None,
    "user": TEXT,
}
COMPLETION: dict[str, Any] = {**_COMMON, "prompt": Any, "logprobs": int | None}
"""Fields of ``/v1/completions``."""

CHAT: dict[str, Any] = {
    **_COMMON,
    "messages": list[dict],
    "max_completion_tokens": int | None,
    "logprobs": bool | None,
    "top_logprobs": int | None,
}
"""Fields of ``/v1/chat/completions``, without tools."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "echo": (None, False),
    "suffix": (None, ""),
    "best_of": (None, 1),
    "parallel_tool_calls": (None, True, False),
    "response_format": (None, {"type": "text"}),
    "store": (None, False),
    "metadata": (None, {}),
    "service_tier": (None, "auto", "default"),
}
"""Fields of OpenAI that a server may leave out, with the values that ask for nothing."""


def known_fields(data: Any, known: Mapping[str, Any], where: str, *, required: str) -> dict[str, Any]:
    """The fields of a request that ``known`` names.

    Raises:
        DataError: the request is no JSON object, lacks ``required``, or has another field that asks for something.
    """
    neutral = {}
    if isinstance(data, dict):
        neutral = {name: data[name] for name in NEUTRAL if name in data and name not in known}
        for name, value in neutral.items():
            if value not in NEUTRAL[name]:
                raise DataError(f"{where}: {name}: found {value!r}, which this server does not implement; leave it out")
        data = {name: value for name, value in data.items() if name not in neutral}
    return check_fields(data, known, where=where, required=(required,))


def stop_texts(body: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts that end a completion. Raises DataError for an empty one."""
    given = body.get("stop")
    stops = (given,) if isinstance(given, str) else tuple(given or ())
    if "" in stops:
        raise DataError("stop: found an empty text; allowed are texts of at least one character")
    return stops


def token_limit(body: Mapping[str, Any], fields: Sequence[str]) -> int | None:
    """The largest number of new tokens: the first of ``fields`` that has a value; ``None`` without one.

    Raises:
        DataError: it is below 1.
    """
    field = next((name for name in fields if body.get(name) is not None), None)
    if field is None:
        return None
    if body[field] < 1:
        raise DataError(f"{field}: found {body[field]}; allowed are numbers from 1; leave it out for the default")
    return body[field]


def refuse_top_logprobs(body: Mapping[str, Any]) -> None:
    """Raise DataError for a chat that asks for the log-probabilities of alternatives."""
    if body.get("top_logprobs") not in (None, 0):
        raise DataError(f"chat: top_logprobs: found {body['top_logprobs']}; allowed is 0; leave it out")


def includes_usage(body: Mapping[str, Any]) -> bool:
    """Whether the last event of a stream has the numbers of tokens."""
    options = check_fields(body.get("stream_options") or {}, {"include_usage": bool}, where="stream_options")
    return options.get("include_usage", False)
