"""The loss mask of a conversation: the tokens of the assistant turns.

A chat template may mark the assistant's text with ``{% generation %}``. Without markers, two more renderings locate
each assistant turn: the messages before it with the generation prompt, and the messages up to and including it. Both
must be prefixes of the whole rendering; the turn is the text between their ends. The text itself is never searched, so
message content that looks like a turn cannot shift the mask.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from archon_core.errors import DataError
from archon_engine.models.text import encode_with_offsets, render_chat, template_error
from archon_rl.fields import ASSISTANT, Messages

Span = tuple[int, int]
"""Start and end (exclusive) in characters."""

_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_FIX = "set tokenizer_path to a tokenizer whose template can render the conversation, or correct the record"
_MARK_FIX = (
    "put {% generation %} ... {% endgeneration %} around the assistant's turns in the template, or train on the last "
    "turn alone, with the messages before it as the prompt and the turn as the answer"
)


def encode_conversation(
    tokenizer: Any, messages: Messages, first_trained: int = 0
) -> tuple[tuple[int, ...], list[bool]]:
    """Token ids of a whole conversation, as ``tokenizer.apply_chat_template`` gives them, and the mask of trained
    tokens.

    The mask covers the assistant turns, from the end of the template's generation prompt to the token that ends the
    turn, inclusive. A token that is partly in a turn is trained on, as in ``transformers``.

    Args:
        tokenizer: a fast ``transformers`` tokenizer with a chat template.
        first_trained: index of the first message to train on; earlier turns are context only.

    Raises:
        DataError: there is no assistant turn to train on, the template fails, or its renderings do not separate turns.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == ASSISTANT and i >= first_trained]
    if not turns:
        roles = ", ".join(str(message["role"]) for message in messages[first_trained:])
        raise DataError(f"found no assistant turn to train on among {roles}; add one, or remove the record")

    def render(end: int, *, generation_prompt: bool) -> str:
        return render_chat(tokenizer, messages[:end], generation_prompt=generation_prompt, fix=_FIX)

    text = render(len(messages), generation_prompt=False)
    ids, offsets = encode_with_offsets(tokenizer, text)
    if has_markers(tokenizer):
        return ids, _marked(tokenizer, messages, ids, offsets, _start(render, text, first_trained))
    spans = [assistant_span(render, text, turn, _end_tokens(tokenizer)) for turn in turns]
    return ids, tokens_in(spans, offsets)


def has_markers(tokenizer: Any) -> bool:
    """Whether the chat template has ``{% generation %}`` markers."""
    return bool(_MARKERS.search(tokenizer.get_chat_template()))


def assistant_span(render: Callable[..., str], text: str, turn: int, end_tokens: tuple[str, ...]) -> Span:
    """The span of message ``turn``, an assistant turn, in ``text``, the rendering of all messages.

    Args:
        render: renders the first n messages, with or without a generation prompt.
        end_tokens: texts of the tokens that may end a turn. White space that the template writes after such a token
            does not belong to the turn.

    Raises:
        DataError: the turn is the first message, or the rendering of the messages before it, or up to and including it,
            is not a prefix of ``text``.
    """
    if turn == 0:
        raise DataError(
            "message 1 (assistant): found no message before the assistant's turn, so its start cannot be rendered; "
            f"begin with a user or system message, or {_MARK_FIX}"
        )
    before = render(turn, generation_prompt=True)
    through = render(turn + 1, generation_prompt=False)
    for part, what in ((before, "before"), (through, "up to and including")):
        if not text.startswith(part):
            raise DataError(
                f"message {turn + 1} (assistant): the chat template renders the messages {what} it differently when "
                f"others follow, so the assistant's text cannot be located; {_MARK_FIX}"
            )
    if len(through) <= len(before):
        raise DataError(
            f"message {turn + 1} (assistant): the chat template renders no text for it after the generation prompt; "
            f"{_MARK_FIX}"
        )
    written = through[len(before) :].rstrip()
    return len(before), len(before) + len(written) if written.endswith(end_tokens) else len(through)


def tokens_in(spans: Sequence[Span], offsets: Sequence[Span]) -> list[bool]:
    """Whether each token overlaps one of ``spans``; both lists are in text order.

    Byte-level tokenizers trim spaces from a token's offsets, so a token may have an empty span.
    """
    trained, current = [], 0
    for start, end in offsets:
        while current < len(spans) and start >= spans[current][1]:
            current += 1
        trained.append(current < len(spans) and end > spans[current][0])
    return trained


def _start(render: Callable[..., str], text: str, first_trained: int) -> int:
    """Index of the first character after the context messages."""
    if first_trained == 0:
        return 0
    context = render(first_trained, generation_prompt=True)
    if not text.startswith(context):
        raise DataError(
            f"the chat template renders the prompt's {first_trained} messages differently when an answer follows, so "
            "the answer cannot be located; put the whole conversation into the field data.prompt_key, and set "
            "data.answer_key=null"
        )
    return len(context)


def _marked(
    tokenizer: Any, messages: Messages, ids: tuple[int, ...], offsets: Sequence[Span], start: int
) -> list[bool]:
    """The mask of tokens between the template's markers, from character ``start`` on."""
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
            "the {% generation %} markers of the chat template enclose no text of the assistant; put them around the "
            "content of assistant messages"
        )
    return trained


def _end_tokens(tokenizer: Any) -> tuple[str, ...]:
    return tuple(token.content for token in tokenizer.added_tokens_decoder.values())
