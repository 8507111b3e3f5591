"""Converts text to token ids exactly as ``transformers`` does, for training, rollout and ``archon generate`` alike.

Text that the tokenizer cannot encode, and messages that the chat template rejects, raise ``DataError``. Chat templates
run in ``transformers``' sandbox (an ``ImmutableSandboxedEnvironment`` of Jinja).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archon_core.errors import DataError

LONGEST_QUOTE = 200
"""Maximum number of characters that a message quotes of a text."""


def encode_texts(
    tokenizer: Any, texts: Sequence[str], *, add_special_tokens: bool, fix: str = "remove those characters"
) -> list[tuple[int, ...]]:
    """Token ids of each text, equal to those of ``tokenizer.encode``.

    Args:
        tokenizer: a ``transformers`` tokenizer.
        add_special_tokens: let the tokenizer add the special tokens that it puts around a text.
        fix: what to do about characters without a token, for the message.

    Raises:
        DataError: a text has an unpaired surrogate, or characters that the tokenizer has no token for.
    """
    if not texts:
        return []
    for text in texts:
        check_unicode(text)
    if len(texts) > 1 and getattr(tokenizer, "is_fast", False):
        # One call for all: the same ids, since neither way pads or truncates.
        encoded = [tuple(ids) for ids in tokenizer(list(texts), add_special_tokens=add_special_tokens)["input_ids"]]
    else:
        encoded = [tuple(tokenizer.encode(text, add_special_tokens=add_special_tokens)) for text in texts]
    for text, ids in zip(texts, encoded, strict=True):
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
            _refuse_unknown(text, _part_without_token(tokenizer, text, ids, add_special_tokens), fix)
    return encoded


def encode_with_offsets(
    tokenizer: Any, text: str, *, fix: str = "remove those characters"
) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """Token ids of a text that already contains its special tokens, and for each token its characters (start, end).

    Raises:
        DataError: as ``encode_texts``, or the tokenizer is not a fast one; only fast ones give offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"tokenizer {type(tokenizer).__name__}: found no character offsets, which the loss mask of a "
            "conversation needs; use a fast tokenizer (one with a tokenizer.json)"
        )
    check_unicode(text)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = tuple(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]
    _refuse_unknown(text, _unknown_part(tokenizer, text, ids, offsets), fix)
    return ids, offsets


def decode_literally(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """The text of tokens, including special ones, for finding stop texts."""
    return tokenizer.decode(list(token_ids), skip_special_tokens=False)


def check_unicode(text: str) -> None:
    """Raise ``DataError`` for an unpaired surrogate, which no encoding of Unicode can express."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"text {quote(text)}: found {text[error.start]!r} at character {error.start}, an unpaired surrogate or a "
            "byte that is not UTF-8; write the whole character, or remove it"
        ) from error


def render_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    generation_prompt: bool,
    fix: str,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """Render a conversation with the tokenizer's chat template.

    Args:
        messages: the conversation; each message has a ``role``.
        generation_prompt: end with the start of an assistant's turn.
        fix: what to do when the template fails, for the message.
        tools: JSON schemas of functions that the template describes to the model; ``None`` for none.

    Raises:
        DataError: the template raised an error; the message quotes it.
    """
    try:
        return tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=generation_prompt,
            **({} if tools is None else {"tools": [dict(tool) for tool in tools]}),
        )
    except Exception as error:  # a template is a program that comes with the model, so it may raise anything
        raise template_error(tokenizer, messages, error, fix) from error


def template_error(tokenizer: Any, messages: Sequence[Mapping[str, Any]], error: Exception, fix: str) -> DataError:
    """The error for a chat template that raised ``error`` over ``messages``."""
    roles = ", ".join(str(message.get("role")) for message in messages)
    reason = " ".join(str(error).split()) or type(error).__name__
    if type(error).__module__.partition(".")[0] != "jinja2":
        reason = f"{type(error).__name__}: {reason}"
    origin = f" of {tokenizer.name_or_path!r}" if getattr(tokenizer, "name_or_path", "") else ""
    return DataError(f"the chat template{origin} failed on messages with the roles {roles}: {reason}; {fix}")


def quote(text: str) -> str:
    """``text`` in quotes, shortened for a message."""
    return repr(text if len(text) <= LONGEST_QUOTE else text[:LONGEST_QUOTE] + "...")


def _refuse_unknown(text: str, part: str | None, fix: str) -> None:
    if part is not None:
        raise DataError(
            f"text {quote(text)}: the tokenizer has no token for {part}, so the model could not see it; {fix}"
        )


def _part_without_token(tokenizer: Any, text: str, ids: Sequence[int], add_special_tokens: bool) -> str | None:
    """The text behind an unknown token in ``ids``; ``None`` if the tokenizer has tokens for all of ``text``."""
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
        return _unknown_part(tokenizer, text, ids, encoded["offset_mapping"])
    own = tokenizer.encode(text, add_special_tokens=False)
    return "part of it" if own.count(tokenizer.unk_token_id) > text.count(tokenizer.unk_token) else None


def _unknown_part(tokenizer: Any, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> str | None:
    """The first text that the tokenizer encoded as the unknown token.

    The id alone does not tell, because many tokenizers use one token as unknown, begin and end of text. A token without
    characters was added by the tokenizer, and a token whose text is its own name was written in the text.
    """
    unknown, name = tokenizer.unk_token_id, tokenizer.unk_token
    if unknown is None or unknown not in ids:
        return None
    parts = (text[start:end] for token, (start, end) in zip(ids, offsets, strict=True) if token == unknown)
    return next((quote(part) for part in parts if part and part.strip() != name), None)
