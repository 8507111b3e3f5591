"""Reads and validates the prompt and answer fields of a record.

A field holds text, a number, or a conversation: a list of messages with ``role`` and ``content``, the format of TRL and
verl. Any other value is an error, since training would see its Python ``repr`` (``None``, ``[{'role': ...``). Imports
no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from archon_core.errors import DataError, did_you_mean
from archon_engine.models.text import check_unicode

ASSISTANT = "assistant"
PROMPT_KEY, ANSWER_KEY = "data.prompt_key", "data.answer_key"
ALLOWED = "allowed are text, a number, or a list of messages with role and content"

Message = Mapping[str, Any]
Messages = tuple[Message, ...]


@dataclass(frozen=True)
class Fields:
    """Reads the prompt and the answer of a record.

    Attributes:
        prompt_key: field of the prompt; dots address nested objects unless a field has the whole name.
        answer_key: field of the answer, likewise; ``None`` if records have no answer.
    """

    prompt_key: str
    answer_key: str | None

    def prompt(self, record: Mapping[str, Any]) -> str | Messages:
        """The prompt: text, or a conversation.

        Raises:
            DataError: the field is missing, or its value is neither text, nor a number, nor a conversation.
        """
        return read_value(record, self.prompt_key, PROMPT_KEY)

    def answer(self, record: Mapping[str, Any]) -> str | Messages | None:
        """The answer; ``None`` without ``answer_key``, or if the prompt is a conversation that contains the answer.

        Raises:
            DataError: as ``prompt``.
        """
        if self.answer_key is None:
            return None
        if not has_field(record, self.answer_key):
            prompt = self.prompt(record)
            if ends_with_assistant(prompt):
                return None
            if not isinstance(prompt, str):
                raise DataError(
                    f"{PROMPT_KEY}={self.prompt_key!r}: found a conversation that ends with a turn of "
                    f"{prompt[-1]['role']!r}, and no field {self.answer_key!r} with an answer; end the conversation "
                    f"with an assistant turn for algorithm=sft, set {ANSWER_KEY} to the field with the answer, or set "
                    "it to null for a reward that reads other fields"
                )
        return read_value(record, self.answer_key, ANSWER_KEY)

    def check(self, record: Any) -> None:
        """Raise ``DataError`` if ``record`` is not a mapping or a field is invalid."""
        if not isinstance(record, Mapping):
            raise DataError(f"found {json_type(record)}; every record must be an object with named fields")
        self.prompt(record)
        self.answer(record)


@contextmanager
def with_location(where: str) -> Iterator[None]:
    """Prefix the message of a ``DataError`` with ``where``, the location of a record."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def has_field(record: Mapping[str, Any], key: str) -> bool:
    """Whether the record has the field ``key``."""
    return _find(record, key) is not _MISSING


def read_field(record: Mapping[str, Any], key: str, *, options: str = f"{PROMPT_KEY} and {ANSWER_KEY}") -> Any:
    """The value of the field ``key``, or of a nested field if ``key`` has dots.

    Args:
        options: the options that name fields, for messages.

    Raises:
        DataError: the record has no such field.
    """
    value = _find(record, key)
    if value is _MISSING:
        names = [str(name) for name in record]
        raise DataError(
            f"found no field {key!r} among {', '.join(map(repr, names)) or 'none'}; set {options} to fields of the "
            f"records{did_you_mean(key, names)}"
        )
    return value


def read_value(
    record: Mapping[str, Any], key: str, option: str, *, options: str = f"{PROMPT_KEY} and {ANSWER_KEY}"
) -> str | Messages:
    """The text or conversation in the field ``key``, which ``option`` names; a number becomes text.

    Raises:
        DataError: the record has no such field, or its value is neither text, nor a number, nor a conversation.
    """
    value = read_field(record, key, options=options)
    where = f"{option}={key!r}"
    if isinstance(value, str):
        with with_location(where):
            check_unicode(value)
        return value
    if (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and math.isfinite(value)):
        with with_location(where):
            return _written(value)
    if isinstance(value, list | tuple):
        return _messages(value, where)
    fix = _FIX
    if option == ANSWER_KEY and isinstance(value, Mapping):
        fix += ", or set data.answer_key=null for a reward that reads other fields (rewards get the whole record)"
    raise DataError(f"{where}: found {json_type(value)}; {ALLOWED}; {fix}")


def ends_with_assistant(value: str | Messages) -> bool:
    """Whether ``value`` is a conversation that ends with an assistant turn."""
    return not isinstance(value, str) and value[-1]["role"] == ASSISTANT


def json_type(value: Any) -> str:
    """The type of a value in JSON's terms, for messages."""
    if isinstance(value, bool):
        return "true" if value else "false"
    names = ((type(None), "null"), (str, "text"), (int, "a number"), (Mapping, "an object"), (list | tuple, "a list"))
    if isinstance(value, float):
        return "a number" if math.isfinite(value) else f"{value} (not a finite number)"
    return next((name for kind, name in names if isinstance(value, kind)), f"a {type(value).__name__}")


_MISSING = object()
_FIX = "correct or remove the record"


def _find(record: Mapping[str, Any], key: str) -> Any:
    if key in record:
        return record[key]
    value: Any = record
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return _MISSING
        value = value[name]
    return value


def _written(number: int | float) -> str:
    try:
        return str(number)
    except ValueError as error:  # sys.get_int_max_str_digits()
        raise DataError("found an integer of more than 4,300 digits; write it as text") from error


def _messages(value: list[Any] | tuple[Any, ...], where: str) -> Messages:
    if not value:
        raise DataError(f"{where}: found an empty list; {ALLOWED}; {_FIX}")
    return tuple(_message(item, f"{where}, message {number}") for number, item in enumerate(value, start=1))


def _message(item: Any, where: str) -> Message:
    """One message without its ``None`` entries: ``datasets`` fills all messages of a column up to the same keys."""
    form = "write {'role': 'user', 'content': 'text'}"
    if not isinstance(item, Mapping):
        raise DataError(f"{where}: found {json_type(item)} in a list; {ALLOWED}; {form}")
    role, content = item.get("role"), item.get("content")
    if not isinstance(role, str) or not role:
        entries = ", ".join(repr(str(name)) for name in item) or "none"
        raise DataError(f"{where}: found {json_type(role)} as the role, and the entries {entries}; {form}")
    if not isinstance(content, str) and not (content is None and item.get("tool_calls")):
        raise DataError(
            f"{where} ({role}): found {json_type(content)} as the content; allowed is text (content parts and images "
            f"are not supported); {form}"
        )
    with with_location(where):
        for text in (role, content):
            check_unicode(text or "")
    return {name: entry for name, entry in item.items() if entry is not None}
