"""Bodies of OpenAI's completion and chat requests as requests for completions."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest
from archon_core.errors import DataError, ModelError
from archon_core.seeding import derive_seed
from archon_core.serving.openai_fields import (
    CHAT,
    COMPLETION,
    includes_usage,
    known_fields,
    refuse_top_logprobs,
    stop_texts,
    token_limit,
)
from archon_rollout.server.openai_messages import TOOL_FIELDS, messages_of, tools_of
from archon_rollout.server.openai_text import TextSide

OPTIONS = {
    "top_p": "top_p",
    "frequency_penalty": "frequency_penalty",
    "top_k": "top_k",
    "min_new_tokens": "min_tokens",
}
"""Our sampling options -> fields of a body."""

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
    body = known_fields(data, COMPLETION, "completions", required="prompt")
    if body.get("logprobs") not in (None, 0):
        raise DataError(
            f"completions: logprobs: found {body['logprobs']}; allowed is 0: the generated tokens, without alternatives"
        )
    return _call(
        body,
        [_prompt(prompt, text) for prompt in _prompts(body["prompt"])],
        text,
        max_tokens=token_limit(body, ("max_tokens",)),
        default=DEFAULT_COMPLETION_TOKENS,
        logprobs=body.get("logprobs") is not None,
        is_chat=False,
    )


def parse_chat(data: Any, text: TextSide) -> TextCall:
    """A body of ``/v1/chat/completions``. Raises as ``parse_completion`` does."""
    body = known_fields(data, CHAT | TOOL_FIELDS, "chat", required="messages")
    refuse_top_logprobs(body)
    return _call(
        body,
        [text.encode_chat(messages_of(body), tools_of(body))],
        text,
        max_tokens=token_limit(body, ("max_completion_tokens", "max_tokens")),
        default=None,
        logprobs=bool(body.get("logprobs")),
        is_chat=True,
    )


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
    stops = stop_texts(body)
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
    return TextCall(
        tuple(requests),
        stops,
        bool(body.get("stream")),
        includes_usage(body),
        sum(map(len, prompts)),
        logprobs,
        is_chat,
    )


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
