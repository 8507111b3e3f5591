"""Token ids between two sampled turns of a conversation.

A conversation that is trained on grows by appending: sampled tokens stay as they were sampled, because decoding them
and encoding the text again may give other tokens, which the policy never sampled. Only the text that the chat template
puts after an answer is encoded: the end of the answer's turn, the next messages, and the start of the next answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archon_core.errors import DataError
from archon_engine.models.text import encode_texts, render_chat

ANSWER = "0archon1answer2"
"""Stands for the answer while a template renders the text after it."""

_FIX = "set tokenizer_path to a tokenizer whose template can render the conversation"


def encode_next_turn(
    tokenizer: Any,
    answer_ids: Sequence[int],
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> tuple[int, ...]:
    """The ids to append to a sampled answer, up to the start of the next answer.

    If the answer ends with the special token that ends a turn in the template, that token is not repeated.

    Args:
        tokenizer: a ``transformers`` tokenizer with a chat template.
        answer_ids: ids of the answer, as they were sampled.
        messages: what follows the answer, such as a user's message or results of tools.
        tools: as in ``render_chat``.

    Raises:
        DataError: the template fails, or leaves out or changes the text of an assistant message; or the tokenizer has
            no token for a character.
    """
    before = [{"role": "user", "content": "1"}, {"role": "assistant", "content": ANSWER}]
    rendered = render_chat(tokenizer, [*before, *messages], generation_prompt=True, fix=_FIX, tools=tools)
    _, found, text = rendered.rpartition(ANSWER)
    if not found:
        raise DataError(
            "the chat template shows no assistant message as it is written once others follow, so the text after an "
            f"answer cannot be located; {_FIX}"
        )
    return _appended(tokenizer, answer_ids, text)


def encode_next_text(tokenizer: Any, answer_ids: Sequence[int], text: str) -> tuple[int, ...]:
    """The ids to append to a sampled answer without a chat template: an end-of-text token, unless the answer ends with
    one, and ``text``.

    Raises:
        DataError: the tokenizer has no token for a character.
    """
    [ids] = encode_texts(tokenizer, [text], add_special_tokens=False)
    ended = bool(answer_ids) and answer_ids[-1] == tokenizer.eos_token_id
    return ids if ended else (tokenizer.eos_token_id, *ids)


def _appended(tokenizer: Any, answer_ids: Sequence[int], text: str) -> tuple[int, ...]:
    [ids] = encode_texts(tokenizer, [text], add_special_tokens=False)
    repeats = bool(answer_ids) and answer_ids[-1] == ids[0] and ids[0] in tokenizer.added_tokens_decoder
    return ids[1:] if repeats else ids
