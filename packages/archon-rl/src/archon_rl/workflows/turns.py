"""``TurnEncoder``: token ids of what stands before and between the turns of a model.

With a chat template, messages are rendered as the template writes them after an assistant's turn. Without one, in the
plain form, the contents of messages follow one another as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from archon_core.contracts.rollout import GenerationConfig
from archon_core.contracts.tool_calls import ReasoningParserSpec
from archon_core.contracts.workflows import WorkflowParts
from archon_core.errors import DataError
from archon_core.plugins import registry
from archon_engine.models.text import encode_texts
from archon_engine.models.turns import encode_next_turn
from archon_rl.text_encoding import is_plain

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class TurnEncoder:
    """Encodes the conversations of a run.

    Attributes:
        parts: of the run.
        is_plain: whether there is no chat template.
    """

    parts: WorkflowParts
    is_plain: bool

    @classmethod
    def of(cls, config: Any, parts: WorkflowParts) -> TurnEncoder:
        """The encoder of a run."""
        return cls(parts, is_plain(parts.tokenizer, use_chat_template=config.tokenizer.use_chat_template))

    def begin(self, messages: Messages, tools: Tools | None = None) -> tuple[int, ...]:
        """The prompt of the first turn.

        Args:
            messages: the conversation so far.
            tools: JSON schemas of functions, for the template.

        Raises:
            DataError: the template fails, or the tokenizer has no token for a character.
        """
        if not self.is_plain:
            return self.parts.encode_messages(messages, tools)
        ids = self._encoded(_contents(messages), add_special_tokens=True)
        if not ids:
            raise DataError("found messages without text; a prompt needs at least one token")
        return ids

    def between(self, answer_ids: Sequence[int], messages: Messages, tools: Tools | None = None) -> tuple[int, ...]:
        """What follows a sampled answer: the messages, and the start of the next turn. Raises as ``begin``."""
        if self.is_plain:
            return self.text(_contents(messages))
        return encode_next_turn(self.parts.tokenizer, answer_ids, messages, tools=tools)

    def text(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text within a sequence."""
        return self._encoded(text, add_special_tokens=False)

    def decoded(self, token_ids: Sequence[int], *, literally: bool = False) -> str:
        """The text of an answer.

        Args:
            token_ids: of the answer.
            literally: keep special tokens, some of which belong to formats of tool calls, but not the one that ends
                the answer.
        """
        ids = list(token_ids)
        if literally and ids and ids[-1] in self.parts.options.stop_token_ids:
            ids.pop()
        text: str = self.parts.tokenizer.decode(ids, skip_special_tokens=not literally)
        return text

    def encodable(self, text: str) -> str:
        """``text`` without characters that the tokenizer has no token for: a model cannot see the results of a tool as
        they are if its tokenizer was built from other texts."""
        tokenizer = self.parts.tokenizer
        if tokenizer.unk_token_id is None or not getattr(tokenizer, "is_fast", False):
            return text
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        for start, end in reversed([span for token, span in pairs if token == tokenizer.unk_token_id]):
            text = text[:start] + text[end:]
        return text

    def _encoded(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        return encode_texts(self.parts.tokenizer, [text], add_special_tokens=add_special_tokens)[0]


def with_stops(options: GenerationConfig, stops: Sequence[str]) -> GenerationConfig:
    """Sampling options of turns that also end at the stop texts of a parser of tool calls."""
    return replace(options, stop=[*(options.stop or ()), *stops]) if stops else options


def reasoning_parser(name: str | None) -> Callable[[str], tuple[str, str]]:
    """The function that takes the reasoning from an answer; for ``None``, one that finds none."""
    if name is None:
        return lambda text: ("", text)
    function: Callable[[str], tuple[str, str]] = registry().get(ReasoningParserSpec, name).load()
    return function


def _contents(messages: Messages) -> str:
    return "".join(message.get("content") or "" for message in messages)
