"""Answers in OpenAI's form: whole ones, and the events of streamed ones.

Beside OpenAI's fields, choices have ``token_ids`` and ``weight_versions``, as vLLM's have.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from archon_core.serving.token_versions import spans_of
from archon_core.serving.wire import to_data

LAST_EVENT = "data: [DONE]\n\n"


@dataclass
class Piece:
    """New tokens of one choice.

    Attributes:
        index: of the choice.
        text: new text.
        token_ids, logprobs: of the new tokens.
        end: the finish reason, in the last piece; empty before.
        versions: of all tokens, in the last piece.
        tool_calls: OpenAI's objects of the tools that the model calls.
        reasoning: new text of the model's reasoning, which servers separate from the content.
    """

    index: int
    text: str
    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    end: str = ""
    versions: Sequence[int] = field(default=())
    tool_calls: Sequence[Mapping[str, Any]] = field(default=())
    reasoning: str = ""


class Answer:
    """The JSON objects of one answer.

    Args:
        model: name of the model.
        is_chat: whether it answers a chat.
        n_prompt_tokens: tokens of all prompts.
        decode: token ids -> text.
        logprobs: whether choices have log-probabilities.

    Attributes:
        id: the answer's id.
    """

    def __init__(
        self,
        model: str,
        *,
        is_chat: bool,
        n_prompt_tokens: int,
        decode: Callable[[Sequence[int]], str],
        logprobs: bool = False,
    ) -> None:
        self._model, self._is_chat, self._n_prompt_tokens = model, is_chat, n_prompt_tokens
        self._decode, self._has_logprobs = decode, logprobs
        self.id = f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The answer with one piece per choice."""
        choices = [self._choice(piece, is_event=False) for piece in pieces]
        return {**self._envelope(is_event=False), "choices": choices, "usage": self._usage(_n_tokens(pieces))}

    def opening(self, index: int) -> str:
        """The first event of a chat's choice."""
        choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return event_line({**self._envelope(is_event=True), "choices": [choice]})

    def part(self, piece: Piece) -> str:
        """The event of a piece."""
        return event_line({**self._envelope(is_event=True), "choices": [self._choice(piece, is_event=True)]})

    def usage(self, n_tokens: int) -> str:
        """The event with the numbers of tokens."""
        return event_line({**self._envelope(is_event=True), "choices": [], "usage": self._usage(n_tokens)})

    def _envelope(self, *, is_event: bool) -> dict[str, Any]:
        kind = "text_completion"
        if self._is_chat:
            kind = "chat.completion.chunk" if is_event else "chat.completion"
        return {"id": self.id, "object": kind, "created": self._created, "model": self._model}

    def _usage(self, n_tokens: int) -> dict[str, int]:
        n_prompt = self._n_prompt_tokens
        return {"prompt_tokens": n_prompt, "completion_tokens": n_tokens, "total_tokens": n_prompt + n_tokens}

    def _choice(self, piece: Piece, *, is_event: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": piece.index, "finish_reason": piece.end or None}
        if not self._is_chat:
            choice["text"] = piece.text
        elif is_event:
            choice["delta"] = {"content": piece.text, **_beside_content(piece, is_event=True)}
        else:
            # OpenAI's content is null where the model only calls tools.
            content = piece.text or (None if piece.tool_calls else "")
            choice["message"] = {"role": "assistant", "content": content, **_beside_content(piece, is_event=False)}
        choice["logprobs"] = self._logprobs(piece) if self._has_logprobs else None
        choice["token_ids"] = list(piece.token_ids)
        if piece.end:
            choice["weight_versions"] = [to_data(span) for span in spans_of(piece.versions)]
        return choice

    def _logprobs(self, piece: Piece) -> dict[str, Any]:
        tokens = [self._decode([token]) for token in piece.token_ids]
        if self._is_chat:
            entries = [
                {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": []}
                for token, logprob in zip(tokens, piece.logprobs, strict=True)
            ]
            return {"content": entries}
        return {"tokens": tokens, "token_logprobs": list(piece.logprobs), "top_logprobs": None, "text_offset": []}


def event_line(data: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data)}\n\n"


def error_body(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    """The JSON object of an error, which clients of OpenAI show.

    Args:
        message: what happened.
        kind: OpenAI's ``type``, such as ``invalid_request_error``.
        code: OpenAI's ``code``, which clients compare; ``None`` for none.
    """
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _beside_content(piece: Piece, *, is_event: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if piece.reasoning:
        fields["reasoning_content"] = piece.reasoning
    if piece.tool_calls:
        # The parts of a streamed call belong together by their index.
        numbered = [{"index": index, **call} for index, call in enumerate(piece.tool_calls)]
        fields["tool_calls"] = numbered if is_event else [dict(call) for call in piece.tool_calls]
    return fields


def _n_tokens(pieces: Sequence[Piece]) -> int:
    return sum(len(piece.token_ids) for piece in pieces)
