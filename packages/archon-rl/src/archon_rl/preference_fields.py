"""Reads preferences: a prompt, the answer that was chosen, and the answer that was rejected.

A record has a prompt and two answers, or, as in HH-RLHF, two whole dialogues that begin alike. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from archon_core.errors import DataError
from archon_rl.fields import (
    ASSISTANT,
    PROMPT_KEY,
    Fields,
    Messages,
    ends_with_assistant,
    has_field,
    json_type,
    read_value,
)

CHOSEN_KEY, REJECTED_KEY = "data.chosen_key", "data.rejected_key"
KEY_OPTIONS = f"{PROMPT_KEY}, {CHOSEN_KEY} and {REJECTED_KEY}"

TURN = "\n\nAssistant:"
"""Begins the assistant's turns in HH-RLHF's texts."""

USUAL_PROMPT = "prompt"


@dataclass(frozen=True)
class Preference:
    """A preference with its prompt separated from the answers.

    Attributes:
        prompt: text or a conversation; ``None`` if the texts ``chosen`` and ``rejected`` contain it and nothing marks
            its end.
        chosen: the better answer.
        rejected: the worse answer.
        is_rendered: whether the texts are whole dialogues, which no chat template formats.
    """

    prompt: str | Messages | None
    chosen: str | Messages
    rejected: str | Messages
    is_rendered: bool = False


@dataclass(frozen=True)
class PreferenceFields:
    """Reads the preference of a record.

    Attributes:
        prompt_key: field of the prompt; a record without it has whole dialogues as answers. Dots address nested
            objects.
        chosen_key: field of the better answer, likewise.
        rejected_key: field of the worse answer, likewise.
    """

    prompt_key: str
    chosen_key: str
    rejected_key: str

    def read(self, record: Mapping[str, Any]) -> Preference:
        """The preference of a record.

        Raises:
            DataError: a field is missing or holds neither text, a number nor messages; an answer is text and the other
                messages; both are equal; or the dialogues do not begin with one prompt.
        """
        chosen, rejected = self._answers(record)
        if chosen == rejected:
            raise DataError(
                f"{CHOSEN_KEY}={self.chosen_key!r} and {REJECTED_KEY}={self.rejected_key!r}: found equal values, which "
                "express no preference; correct or remove the record, or leave such records out with "
                "data.equal_pairs=drop"
            )
        if has_field(record, self.prompt_key):
            return Preference(self._prompt(record), chosen, rejected)
        if self.prompt_key != USUAL_PROMPT and has_field(record, USUAL_PROMPT):
            raise DataError(
                f"found no field {self.prompt_key!r}, but a field {USUAL_PROMPT!r}; set {PROMPT_KEY}={USUAL_PROMPT}"
            )
        if isinstance(chosen, str) and isinstance(rejected, str):
            return _separate_texts(chosen, rejected)
        assert not isinstance(chosen, str)
        assert not isinstance(rejected, str)
        return _separate_messages(chosen, rejected)

    def are_equal(self, record: Mapping[str, Any]) -> bool:
        """Whether both answers are equal. Raises DataError if a field is missing or invalid."""
        chosen, rejected = self._answers(record)
        return chosen == rejected

    def check(self, record: Any) -> None:
        """Raise ``DataError`` if ``record`` is not a mapping, or a field is missing or invalid. Equal answers are
        found later."""
        if not isinstance(record, Mapping):
            raise DataError(f"found {json_type(record)}; every record must be an object with named fields")
        if not self.are_equal(record):
            self.read(record)

    def _answers(self, record: Mapping[str, Any]) -> tuple[str | Messages, str | Messages]:
        chosen = read_value(record, self.chosen_key, CHOSEN_KEY, options=KEY_OPTIONS)
        rejected = read_value(record, self.rejected_key, REJECTED_KEY, options=KEY_OPTIONS)
        if isinstance(chosen, str) is not isinstance(rejected, str):
            kinds = ["text" if isinstance(value, str) else "messages" for value in (chosen, rejected)]
            raise DataError(
                f"{CHOSEN_KEY}={self.chosen_key!r} and {REJECTED_KEY}={self.rejected_key!r}: found {kinds[0]} and "
                f"{kinds[1]}; allowed are two texts or two lists of messages; write both in one form"
            )
        return chosen, rejected

    def _prompt(self, record: Mapping[str, Any]) -> str | Messages:
        prompt = read_value(record, self.prompt_key, PROMPT_KEY, options=KEY_OPTIONS)
        if ends_with_assistant(prompt):
            raise DataError(
                f"{PROMPT_KEY}={self.prompt_key!r}: found a conversation that ends with the assistant's turn; allowed "
                "is one that the answers continue; remove that turn"
            )
        return prompt


def fields_of(data: Any) -> Fields | PreferenceFields:
    """The reader of the records of a section ``data``: of preferences if the algorithm adds the options of these."""
    if hasattr(data, "chosen_key"):
        return PreferenceFields(data.prompt_key, data.chosen_key, data.rejected_key)
    return Fields(data.prompt_key, data.answer_key)


def common_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """The number of equal elements that both sequences begin with.

    >>> common_length("Sure.", "Surely")
    4
    """
    pairs = zip(first, second, strict=False)
    return next((n for n, (ours, theirs) in enumerate(pairs) if ours != theirs), min(len(first), len(second)))


def _separate_texts(chosen: str, rejected: str) -> Preference:
    """The prompt of two dialogues: what they share, up to the start of the assistant's turn in which they differ."""
    end = chosen[: common_length(chosen, rejected)].rfind(TURN)
    if end < 0:
        return Preference(None, chosen, rejected, is_rendered=True)
    end += len(TURN)
    return Preference(chosen[:end], chosen[end:], rejected[end:], is_rendered=True)


def _separate_messages(chosen: Messages, rejected: Messages) -> Preference:
    """The prompt of two conversations: the messages before the first that differs."""
    n_common = common_length(chosen, rejected)
    where = "the conversations of the chosen and the rejected answer"
    if n_common == 0:
        raise DataError(
            f"{where}: found no common first message, so there is no prompt; begin both with the same messages, or set "
            f"{PROMPT_KEY} to the field with the prompt"
        )
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if n_common == len(messages):
            raise DataError(f"{where}: found that the {name} one ends where the other goes on; add the answer to it")
        if messages[n_common]["role"] != ASSISTANT:
            raise DataError(
                f"{where}: found that message {n_common + 1} of the {name} one, the first that differs, has the role "
                f"{messages[n_common]['role']!r}; allowed is {ASSISTANT!r}: both must answer one prompt"
            )
    return Preference(chosen[:n_common], chosen[n_common:], rejected[n_common:])
