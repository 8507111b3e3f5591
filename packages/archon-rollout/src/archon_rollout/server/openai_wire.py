"""Bodies of OpenAI's completion and chat requests. Fields that this server does not implement are refused by name,
unless their value asks for nothing."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest
from archon_core.errors import DataError, ModelError
from archon_core.seeding import derive_seed
from archon_rollout.server.openai_messages import TOOL_FIELDS, messages_of, tools_of
from archon_rollout.server.openai_text import TextSide
from archon_rollout.server.wire import check_fields

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
CHAT: dict[str, Any] = {
    **_COMMON,
    "messages": list[dict],
    "max_completion_tokens": int | None,
    "logprobs": bool | None,
    "top_logprobs": int | None,
}

OPTIONS = {
    "top_p": "top_p",
    "frequency_penalty": "frequency_penalty",
    "top_k": "top_k",
    "min_new_tokens": "min_tokens",
}
"""Our sampling options -> fields of a body."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
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
"""Fields of OpenAI that this server does not implement, with the values that ask for nothing."""

MAX_CHOICES = 128
"""Largest ``n``, as OpenAI has it."""

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default of ``max_tokens`` for completions."""

CHAT_TOKENS_WITHOUT_LIMIT = 4096
"""Default of ``max_tokens`` for chats with a model that has no limit of positions."""


@dataclass(frozen=True)
class TextCall:
    """A request of OpenAI's interface.

    Attributes:
        requests: one per prompt, or per sample if there are stop texts, which end single samples.
        stops: texts that end a completion.
        streams: whether to answer with events.
        includes_usage: whether the last event has the numbers of tokens.
        n_prompt_tokens: tokens of all prompts.
        logprobs: whether to return log-probabilities.
        is_chat: whether it is a chat.
    """

    requests: tuple[GenerationRequest, ...]
    stops: tuple[str, ...]
    streams: bool
    includes_usage: bool
    n_prompt_tokens: int
    logprobs: bool
    is_chat: bool


def parse_completion(data: Any, text: TextSide) -> TextCall:
    """A body of ``/v1/completions``. Raises DataError or ModelError if it is malformed or does not fit the model."""
    body = _known_fields(data, COMPLETION, "completions", required="prompt")
    if body.get("logprobs") not in (None, 0):
        raise DataError(
            f"completions: logprobs: found {body['logprobs']}; allowed is 0: the generated tokens, without alternatives"
        )
    return _call(
        body,
        [_prompt(prompt, text) for prompt in _prompts(body["prompt"])],
        text,
        max_tokens=_limit(body, "max_tokens"),
        default=DEFAULT_COMPLETION_TOKENS,
        logprobs=body.get("logprobs") is not None,
        is_chat=False,
    )


def parse_chat(data: Any, text: TextSide) -> TextCall:
    """A body of ``/v1/chat/completions``. Raises as ``parse_completion`` does."""
    body = _known_fields(data, CHAT | TOOL_FIELDS, "chat", required="messages")
    if body.get("top_logprobs") not in (None, 0):
        raise DataError(f"chat: top_logprobs: found {body['top_logprobs']}; allowed is 0; leave it out")
    field = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    return _call(
        body,
        [text.encode_chat(messages_of(body), tools_of(body))],
        text,
        max_tokens=_limit(body, field),
        default=None,
        logprobs=bool(body.get("logprobs")),
        is_chat=True,
    )


def _known_fields(data: Any, known: Mapping[str, Any], where: str, *, required: str) -> dict[str, Any]:
    neutral = {}
    if isinstance(data, dict):
        neutral = {name: data[name] for name in _NEUTRAL if name in data and name not in known}
        for name, value in neutral.items():
            if value not in _NEUTRAL[name]:
                raise DataError(f"{where}: {name}: found {value!r}, which this server does not implement; leave it out")
        data = {name: value for name, value in data.items() if name not in neutral}
    return check_fields(data, known, where=where, required=(required,))


def _prompts(prompt: Any) -> list[Any]:
    """A prompt, or a list of prompts."""
    is_ids = isinstance(prompt, list) and prompt and all(isinstance(item, int) for item in prompt)
    prompts = [prompt] if isinstance(prompt, str) or is_ids else prompt
    if not isinstance(prompts, list) or not prompts:
        raise DataError("completions: prompt: allowed are a text, a list of token ids, or a list of these")
    return prompts


def _prompt(prompt: Any, text: TextSide) -> tuple[int, ...]:
    if isinstance(prompt, str):
        return text.encode(prompt)
    if isinstance(prompt, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in prompt):
        return tuple(prompt)
    raise DataError("completions: prompt: allowed are a text, a list of token ids, or a list of these")


def _call(
    body: Mapping[str, Any],
    prompts: list[tuple[int, ...]],
    text: TextSide,
    *,
    max_tokens: int | None,
    default: int | None,
    logprobs: bool,
    is_chat: bool,
) -> TextCall:
    given = body.get("stop")
    stops = (given,) if isinstance(given, str) else tuple(given or ())
    if "" in stops:
        raise DataError("stop: found an empty text; allowed are texts of at least one character")
    n_samples = 1 if body.get("n") is None else body["n"]
    if not 1 <= n_samples <= MAX_CHOICES:
        raise DataError(f"n: found {n_samples}; allowed are 1 to {MAX_CHOICES}; send several requests for more")
    seed = secrets.randbits(48) if body.get("seed") is None else body["seed"]
    temperature = 1.0 if body.get("temperature") is None else body["temperature"]
    end_ids = list(dict.fromkeys([*text.end_ids, *(body.get("stop_token_ids") or ())]))
    options: dict[str, Any] = {"stop_token_ids": end_ids}
    for ours, theirs in OPTIONS.items():
        if body.get(theirs) is not None:
            options[ours] = body[theirs]
    # OpenAI's temperature of 0 is the most probable token.
    options |= {"greedy": True} if temperature == 0 else {"temperature": temperature}
    requests = []
    for place, prompt in enumerate(prompts):
        options["max_new_tokens"] = _room(prompt, text, max_tokens, default)
        seeds = tuple(derive_seed(seed, "completion", place, number) for number in range(n_samples))
        for part in [(one,) for one in seeds] if stops else [seeds]:
            requests.append(GenerationRequest(prompt, GenerationConfig(n_samples=len(part), **options), part))
    stream_options = check_fields(body.get("stream_options") or {}, {"include_usage": bool}, where="stream_options")
    return TextCall(
        tuple(requests),
        stops,
        bool(body.get("stream")),
        stream_options.get("include_usage", False),
        sum(map(len, prompts)),
        logprobs,
        is_chat,
    )


def _limit(body: Mapping[str, Any], field: str) -> int | None:
    limit = body.get(field)
    if limit is not None and limit < 1:
        raise DataError(f"{field}: found {limit}; allowed are numbers from 1; leave it out for the default")
    return limit


def _room(prompt: tuple[int, ...], text: TextSide, max_tokens: int | None, default: int | None) -> int:
    """The largest number of new tokens."""
    reach = [n for n in (text.limits.max_positions, text.limits.length_dependent_above) if n is not None]
    if not reach:
        return max_tokens if max_tokens is not None else default or CHAT_TOKENS_WITHOUT_LIMIT
    room = min(reach) - len(prompt)
    if room < 1:
        raise ModelError(
            f"prompt: found {len(prompt)} tokens; the model allows {min(reach)} with the completion; shorten the prompt"
        )
    if max_tokens is None:
        return room if default is None else min(room, default)
    if max_tokens > room:
        raise ModelError(
            f"max_tokens: found {max_tokens} after a prompt of {len(prompt)} tokens; the model allows {min(reach)} "
            f"together; allowed is at most {room}"
        )
    return max_tokens
