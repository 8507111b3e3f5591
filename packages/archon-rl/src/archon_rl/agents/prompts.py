"""Prompts of calls. The prompt of a call that continues another one keeps the sampled tokens.

The chat template renders only the text after an answer: the end of the turn, further messages, and the start of the
next answer. Without a chat template, a prompt is the texts of the messages, one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from archon_core.contracts.rollout import Completion
from archon_core.errors import DataError
from archon_engine.models.text import decode_literally, encode_texts, render_chat
from archon_engine.models.turns import encode_next_text
from archon_rl.agents.calls import Call
from archon_rl.agents.chat_messages import Message, for_template

_MARK = "x7Qanswer9Zx"
"""Stands for an answer in a rendering: text that no chat template changes."""

_FIX = "send other messages"

Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Prompt:
    """The prompt of a call.

    Attributes:
        ids: its tokens.
        text: its text, as the template renders it.
        parent: the call whose tokens it starts with; ``None`` if all of its text was tokenized.
    """

    ids: tuple[int, ...]
    text: str
    parent: Call | None = None


@dataclass(frozen=True)
class PromptBuilder:
    """Builds the prompts of a session.

    Attributes:
        tokenizer: a ``transformers`` tokenizer.
        end_ids: tokens that end an answer.
        is_plain: whether prompts are plain texts, without a chat template.
        keeps_history: put new messages behind the tokens of the earlier calls, whatever the template would make of
            them (``chat_template_type: concat``). Otherwise a prompt is the rendering of all messages: where the
            template writes earlier turns differently, such as without their reasoning, a new conversation begins.
    """

    tokenizer: Any
    end_ids: frozenset[int]
    is_plain: bool = False
    keeps_history: bool = False

    def build(self, messages: Sequence[Message], tools: Tools, parent: Call | None) -> Prompt:
        """The prompt of a call.

        Args:
            messages: in normal form.
            tools: JSON schemas.
            parent: the call that ``messages`` continue; ``None`` for none.

        Raises:
            DataError: the template cannot render the messages, or the tokenizer has no token for a character.
        """
        if parent is not None:
            continued = self._continued(messages, tools, parent)
            if continued is not None:
                return continued
        text = self._render(for_template(messages), tools)
        ids = self._encode(text, is_start=True)
        if not ids:
            raise DataError("messages: found no text; a prompt needs at least one token")
        return Prompt(ids, text)

    def _continued(self, messages: Sequence[Message], tools: Tools, parent: Call) -> Prompt | None:
        """The prompt behind ``parent``'s tokens; ``None`` if the template changes the earlier turns."""
        sampled = _as_sampled(messages, parent)
        place = len(parent.messages)
        try:
            marked = self._render(_with_answer(sampled, place, _MARK), tools)
            whole = self._render(sampled, tools)
        except DataError:
            if self.keeps_history:
                raise
            return None  # a template that needs the calls of an answer as objects
        before, _, tail = marked.rpartition(_MARK)
        if not before and not self.is_plain:
            if self.keeps_history:
                raise DataError(
                    "messages: the chat template does not show an earlier answer, so no text can follow it; set "
                    "rollout.agent.chat_template_type=hf"
                )
            return None
        text = parent.prompt_text + parent.answer_text + tail
        if not self.keeps_history and _without_spaces(whole) != _without_spaces(text):
            return None
        if self.is_plain:
            return Prompt(parent.token_ids + encode_next_text(self.tokenizer, parent.token_ids, tail), text, parent)
        if self._ends(parent.completion):  # the template writes the end of the turn, which was sampled
            tail = tail.removeprefix(decode_literally(self.tokenizer, parent.completion.token_ids[-1:]))
        return Prompt(parent.token_ids + self._encode(tail, is_start=False), text, parent)

    def answer_text(self, completion: Completion) -> str:
        """The text of an answer with its special tokens, without the token that ends it."""
        ids = completion.token_ids
        return decode_literally(self.tokenizer, ids[:-1] if self._ends(completion) else ids)

    def _ends(self, completion: Completion) -> bool:
        """Whether the last token ends the answer; a stop text ends it too, and belongs to it."""
        return completion.stop_reason == "stop" and completion.token_ids[-1] in self.end_ids

    def _render(self, messages: Sequence[Message], tools: Tools) -> str:
        if not self.is_plain:
            return render_chat(self.tokenizer, messages, generation_prompt=True, fix=_FIX, tools=tools or None)
        if tools:
            raise DataError(
                "tools: found tools, and there is no chat template that shows them to the model; describe them in a "
                "message, or set tokenizer_path to a tokenizer with a template and tokenizer.use_chat_template=true"
            )
        return "".join(message["content"] for message in messages)

    def _encode(self, text: str, *, is_start: bool) -> tuple[int, ...]:
        # A chat template writes the special tokens itself.
        special = is_start and self.is_plain
        return encode_texts(self.tokenizer, [text], add_special_tokens=special, fix="remove them from the messages")[0]


def _as_sampled(messages: Sequence[Message], parent: Call) -> list[dict[str, Any]]:
    """The messages with the texts of earlier answers as they were sampled, calls of tools included."""
    sampled = for_template(messages)
    for call in parent.path:
        place = len(call.messages)
        sampled[place] = {"role": "assistant", "content": call.answer_text}
    return sampled


def _with_answer(messages: list[dict[str, Any]], place: int, text: str) -> list[dict[str, Any]]:
    return [*messages[:place], {"role": "assistant", "content": text}, *messages[place + 1 :]]


def _without_spaces(text: str) -> str:
    """Templates trim and add white space around contents, which changes nothing that a conversation says."""
    return "".join(text.split())
