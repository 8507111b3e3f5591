"""Text for OpenAI's routes: prompts to token ids, and token ids to text as they arrive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from archon_core.errors import DataError
from archon_core.models.end_tokens import EndTokens
from archon_engine.models.text import encode_texts, render_chat
from archon_rollout.model_limits import ModelLimits
from archon_rollout.server.model import ServedModel

UNFINISHED = "\ufffd"
"""A tokenizer decodes an incomplete character to this."""

FIX = "remove them from the prompt"


@dataclass(frozen=True)
class TextSide:
    """A model's name and tokenizer.

    Attributes:
        name: of the model, as ``--model`` gave it.
        limits: of the model.
        tokenizer: a ``transformers`` tokenizer; ``None`` for token ids only.
        ends: the tokens that end a completion; ``None`` without a tokenizer.
    """

    name: str
    limits: ModelLimits
    tokenizer: Any = None
    ends: EndTokens | None = None

    @classmethod
    def of(cls, model: ServedModel, limits: ModelLimits) -> TextSide:
        """The text side of a served model."""
        parts = model.text_parts()
        return cls(model.name, limits) if parts is None else cls(model.name, limits, *parts)

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end every completion."""
        return [] if self.ends is None else list(self.ends.ids)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a prompt. Raises DataError if there is no tokenizer, or no token for part of the text."""
        [ids] = encode_texts(self._required(), [text], add_special_tokens=True, fix=FIX)
        return ids

    def encode_chat(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[int, ...]:
        """Token ids of a conversation, up to the start of the assistant's turn. Raises DataError as ``encode`` does, or
        if there is no chat template."""
        tokenizer = self._required()
        if tokenizer.chat_template is None:
            raise DataError(
                "messages: found a tokenizer without a chat template; send the text to /v1/completions instead"
            )
        text = render_chat(tokenizer, messages, tools=tools, generation_prompt=True, fix="send other messages")
        [ids] = encode_texts(tokenizer, [text], add_special_tokens=False, fix=FIX)
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, without special ones; empty without a tokenizer."""
        return "" if self.tokenizer is None else self.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def _required(self) -> Any:
        if self.tokenizer is None:
            raise DataError("prompt: found text; this model has no tokenizer; send token ids")
        return self.tokenizer


class TextStream:
    """The text of one completion as its tokens arrive. Characters that may belong to a stop text are held back.

    Args:
        text: decodes.
        stops: texts that end the completion; they are not part of it.
    """

    def __init__(self, text: TextSide, stops: Sequence[str]) -> None:
        self._text = text
        self._stops = stops
        self._ids: list[int] = []
        # Some tokenizers decode a token differently at the start of a text: decode new tokens behind older ones.
        self._start = self._decoded = 0
        self._held = ""
        self.is_stopped = False

    @property
    def n_tokens(self) -> int:
        """Number of tokens so far."""
        return len(self._ids)

    def add(self, token_ids: Sequence[int], *, is_last: bool = False) -> str:
        """The text that becomes certain with these tokens."""
        self._ids += token_ids
        before = self._text.decode(self._ids[self._start : self._decoded])
        now = self._text.decode(self._ids[self._start :])
        new = ""
        if is_last or not now.endswith(UNFINISHED):
            new = now[len(before) :]
            self._start, self._decoded = self._decoded, len(self._ids)
        return self._before_stop(new, is_last)

    def _before_stop(self, new: str, is_last: bool) -> str:
        if self.is_stopped:
            return ""
        text = self._held + new
        places = [text.find(stop) for stop in self._stops if stop in text]
        if places:
            self.is_stopped, self._held = True, ""
            return text[: min(places)]
        n_held = 0 if is_last else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` with which ``stop`` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
