"""The loss mask of a conversation: which characters, and so which tokens, the assistant wrote.

A chat template with ``{% generation %}`` markers marks them. Without markers, the template renders the conversation
twice per turn of the assistant: before the turn, with the generation prompt, and through its end. Both must be prefixes
of the whole rendering, and the turn lies between them. The text is never searched, so content that looks like a turn is
harmless.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from archon_core.errors import DataError
from archon_engine.models.text import encode_with_offsets, render_chat, template_error
from archon_rl.fields import ASSISTANT, Messages

Span = tuple[int, int]
"""First character, and the one after the last."""

_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_FIX = "give a tokenizer whose template can render the conversation (tokenizer_path), or mend the record"
_MARK_FIX = (
    "put {% generation %} ... {% endgeneration %} around the assistant's turns in the template, or train on the last "
    "turn alone, with the messages before it as prompt and it as answer"
)


def encode_conversation(
    tokenizer: Any, messages: Messages, first_trained: int = 0
) -> tuple[tuple[int, ...], list[bool]]:
    """Token ids of a whole conversation, those of ``tokenizer.apply_chat_template``, and which of them are trained on.

    Trained on are the assistant's turns: what follows the template's generation prompt up to and including the token
    that ends the turn. A token that is partly in a turn is trained on, as in ``transformers``.

    Args:
        tokenizer: a fast ``transformers`` tokenizer with a chat template.
        first_trained: turns before this message are context only.

    Raises:
        DataError: no assistant's turn is left to train on, the template fails, or it does not tell turns apart.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == ASSISTANT and i >= first_trained]
    if not turns:
        roles = ", ".join(str(message["role"]) for message in messages[first_trained:])
        raise DataError(f"found no turn of the assistant to train on among {roles}; add one, or remove the record")

    def render(end: int, *, generation_prompt: bool) -> str:
        return render_chat(tokenizer, messages[:end], generation_prompt=generation_prompt, fix=_FIX)

    text = render(len(messages), generation_prompt=False)
    ids, offsets = encode_with_offsets(tokenizer, text)
    if has_markers(tokenizer):
        return ids, _marked(tokenizer, messages, ids, offsets, _start(render, text, first_trained))
    spans = [assistant_span(render, text, turn, _end_tokens(tokenizer)) for turn in turns]
    return ids, tokens_in(spans, offsets)


def has_markers(tokenizer: Any) -> bool:
    """Whether the chat template marks what the assistant writes."""
    return bool(_MARKERS.search(tokenizer.get_chat_template()))


def assistant_span(render: Callable[..., str], text: str, turn: int, end_tokens: tuple[str, ...]) -> Span:
    """Where message ``turn``, an assistant's, stands in ``text``, the rendering of all messages.

    Args:
        render: the text of the first n messages, with or without a generation prompt.
        end_tokens: texts of tokens that end a turn. White space that the template writes after one is no part of it.

    Raises:
        DataError: it is the first message, or the rendering of the messages before it, or up to it, is no prefix of
            ``text``.
    """
    if turn == 0:
        raise DataError(
            "message 1 (assistant): found no message before the assistant's turn, so the chat template cannot render "
            f"where it starts; begin with the user's or the system's message, or {_MARK_FIX}"
        )
    before = render(turn, generation_prompt=True)
    through = render(turn + 1, generation_prompt=False)
    for part, what in ((before, "before"), (through, "up to and including")):
        if not text.startswith(part):
            raise DataError(
                f"message {turn + 1} (assistant): the chat template renders the messages {what} it differently when "
                f"others follow, so what the assistant wrote cannot be distinguished from the rest; {_MARK_FIX}"
            )
    if len(through) <= len(before):
        raise DataError(
            f"message {turn + 1} (assistant): the chat template renders nothing of it after the generation prompt; "
            f"{_MARK_FIX}"
        )
    written = through[len(before) :].rstrip()
    return len(before), len(before) + len(written) if written.endswith(end_tokens) else len(through)


def tokens_in(spans: Sequence[Span], offsets: Sequence[Span]) -> list[bool]:
    """Which tokens have characters in one of ``spans``; both come in the order of the text.

    Byte-level tokenizers cut spaces off the start of a token's characters, of which none may be left.
    """
    trained, current = [], 0
    for start, end in offsets:
        while current < len(spans) and start >= spans[current][1]:
            current += 1
        trained.append(current < len(spans) and end > spans[current][0])
    return trained


def _start(render: Callable[..., str], text: str, first_trained: int) -> int:
    """First character after the context, which is a prefix of ``text``."""
    if first_trained == 0:
        return 0
    context = render(first_trained, generation_prompt=True)
    if not text.startswith(context):
        raise DataError(
            f"the chat template renders the prompt's {first_trained} messages differently when an answer follows, so "
            "the two cannot be told apart; give the whole conversation as data.prompt_key, with data.answer_key=null"
        )
    return len(context)


def _marked(
    tokenizer: Any, messages: Messages, ids: tuple[int, ...], offsets: Sequence[Span], start: int
) -> list[bool]:
    """Tokens between the template's own markers, from character ``start`` on."""
    conversation = [dict(message) for message in messages]
    try:
        encoded = tokenizer.apply_chat_template(
            conversation, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    except Exception as error:  # as in render_chat
        raise template_error(tokenizer, messages, error, _FIX) from error
    assert tuple(encoded["input_ids"]) == ids, "transformers encodes the rendering as encode_texts does"
    trained = [
        bool(marked) and end > start for marked, (_, end) in zip(encoded["assistant_masks"], offsets, strict=True)
    ]
    if not any(trained):
        raise DataError(
            "the {% generation %} markers of the chat template enclose nothing of the assistant's turns; put them "
            "around what the assistant writes"
        )
    return trained


def _end_tokens(tokenizer: Any) -> tuple[str, ...]:
    return tuple(token.content for token in tokenizer.added_tokens_decoder.values())
