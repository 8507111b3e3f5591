"""Bodies of chat requests in a session.

Training compares the policy with the distribution that a run samples from, so the sampling options are the run's. A
request may only shorten an answer, with ``max_tokens`` and ``stop``; fields that ask for other sampling are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from archon_core.contracts.rollout import GenerationConfig
from archon_core.errors import DataError
from archon_core.serving.openai_fields import (
    CHAT,
    includes_usage,
    known_fields,
    refuse_top_logprobs,
    stop_texts,
    token_limit,
)

FIELDS: dict[str, Any] = {
    **CHAT,
    "tools": list[dict] | None,
    "tool_choice": Any,
    "parallel_tool_calls": bool | None,
}
SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "frequency_penalty": "frequency_penalty",
    "min_tokens": "min_new_tokens",
}
"""Fields of a request -> the run's sampling options."""


class TooLongError(DataError):
    """A prompt that leaves no room for an answer."""


@dataclass(frozen=True)
class ChatRequest:
    """A chat request.

    Attributes:
        model: that the agent named; any name is the trained model.
        messages: as they came.
        tools: JSON schemas on offer; none with ``tool_choice: none``.
        one_call: whether an answer calls at most one tool.
        max_tokens: largest number of sampled tokens; ``None`` for the run's.
        stop: texts that end the answer.
        seed: the agent's; ``None`` for none.
        streams: whether to answer with events.
        includes_usage: whether the last event has the numbers of tokens.
        logprobs: whether to return log-probabilities.
    """

    model: str
    messages: list[dict[str, Any]]
    tools: tuple[Mapping[str, Any], ...]
    one_call: bool
    max_tokens: int | None
    stop: tuple[str, ...]
    seed: int | None
    streams: bool
    includes_usage: bool
    logprobs: bool


def parse_chat(data: Any, repeatable: Sequence[GenerationConfig]) -> ChatRequest:
    """The request that a JSON body describes.

    Args:
        repeatable: sampling options whose values the request may repeat; the first are named in errors.

    Raises:
        DataError: the body is malformed, or asks for something that a session does not give.
    """
    body = known_fields(data, FIELDS, "chat", required="messages")
    refuse_top_logprobs(body)
    if body.get("n") not in (None, 1):
        raise DataError(f"chat: n: found {body['n']}; allowed is 1: a call has one answer; send several requests")
    if body.get("stop_token_ids"):
        raise DataError("chat: stop_token_ids: found token ids; allowed are texts (stop), or gconfig.stop_token_ids")
    _check_sampling(body, repeatable)
    choice = body.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise DataError(
            f"chat: tool_choice: found {choice!r}; allowed are 'auto' and 'none': sampling is not constrained, so no "
            "call can be forced; set tool_choice to 'auto'"
        )
    return ChatRequest(
        model=body.get("model") or "default",
        messages=body["messages"],
        tools=() if choice == "none" else tuple(body.get("tools") or ()),
        one_call=body.get("parallel_tool_calls") is False,
        max_tokens=token_limit(body, ("max_completion_tokens", "max_tokens")),
        stop=stop_texts(body),
        seed=body.get("seed"),
        streams=bool(body.get("stream")),
        includes_usage=includes_usage(body),
        logprobs=bool(body.get("logprobs")),
    )


def sampling_of(request: ChatRequest, options: GenerationConfig, n_prompt: int, most: int | None) -> GenerationConfig:
    """The sampling options of a call.

    Args:
        options: the run's.
        n_prompt: tokens of the prompt.
        most: largest number of tokens of prompt and answer; ``None`` for no limit.

    Raises:
        TooLongError: the prompt reaches a limit.
    """
    limits = [limit for limit in (most, options.max_tokens) if limit is not None]
    room = min(limits) - n_prompt if limits else options.max_new_tokens
    least = max(1, options.min_new_tokens)
    if room < least:
        raise TooLongError(
            f"messages: found {n_prompt} tokens; allowed are {min(limits)} with the answer "
            "(rollout.agent.engine_max_tokens, gconfig.max_tokens); shorten the conversation"
        )
    wanted = options.max_new_tokens if request.max_tokens is None else request.max_tokens
    return replace(
        options,
        n_samples=1,
        max_new_tokens=max(least, min(room, wanted, options.max_new_tokens)),
        stop=[*(options.stop or ()), *request.stop] or None,
    )


def _check_sampling(body: Mapping[str, Any], repeatable: Sequence[GenerationConfig]) -> None:
    for field, name in SAMPLING.items():
        given = body.get(field)
        allowed = [0 if name == "temperature" and one.greedy else getattr(one, name) for one in repeatable]
        if given is not None and given not in allowed:
            ours = allowed[0]
            raise DataError(
                f"chat: {field}: found {given}; this run samples with gconfig.{name}={ours:g}, because training must "
                f"know the distribution; leave {field} out, or set gconfig.{name}={given:g}"
            )
