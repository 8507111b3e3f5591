"""Encodes preferences to token ids: two sequences per record, the chosen one before the rejected one.

A prompt with two answers is encoded as for supervised training, once with each answer. Whole dialogues in text are
encoded as they are, without a chat template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from archon_core.contracts.batch import Batch
from archon_core.errors import DataError
from archon_rl.fields import Messages
from archon_rl.losses.preference import PAIRS
from archon_rl.preference_fields import Preference, PreferenceFields, common_length, fields_of
from archon_rl.text_encoding import Example, TextEncoder, supervised_batch

Records = Sequence[Mapping[str, Any]]
Pair = tuple[Example, Example]
"""The sequences with the chosen and with the rejected answer."""


@dataclass(frozen=True)
class PreferenceEncoder:
    """Encodes the preferences of records.

    Attributes:
        tokenizer: a ``transformers`` tokenizer with an end-of-text token.
        fields: the reader of preferences.
        use_chat_template: format a text prompt as a user message if the tokenizer has a chat template.
    """

    tokenizer: Any
    fields: PreferenceFields
    use_chat_template: bool = True

    def texts(self, record: Mapping[str, Any]) -> Iterator[str]:
        """All texts of the record, to build a tokenizer from."""
        if self.fields.are_equal(record):
            return
        preference = self.fields.read(record)
        for value in (preference.prompt, preference.chosen, preference.rejected):
            if isinstance(value, str):
                yield value
            else:
                yield from (message.get("content", "") for message in value or ())

    def encode_pairs(self, records: Records) -> list[Pair]:
        """Both sequences of every record. The loss is on the answers: their text and the end-of-text token, or their
        assistant turns.

        Raises:
            DataError: as ``PreferenceFields.read`` and ``TextEncoder.encode_examples``; or two dialogues in text have
                no common first token.
        """
        preferences = [self.fields.read(record) for record in records]
        pairs: dict[int, Pair] = {}
        whole = [i for i, preference in enumerate(preferences) if preference.prompt is None]
        pairs.update(zip(whole, self._encode_whole([preferences[i] for i in whole]), strict=True))
        for is_rendered in (True, False):
            group = [i for i, p in enumerate(preferences) if p.prompt is not None and p.is_rendered is is_rendered]
            chosen = self._encode(
                self.fields.chosen_key, [(preferences[i].prompt, preferences[i].chosen) for i in group], is_rendered
            )
            rejected = self._encode(
                self.fields.rejected_key, [(preferences[i].prompt, preferences[i].rejected) for i in group], is_rendered
            )
            pairs.update(zip(group, zip(chosen, rejected, strict=True), strict=True))
        return [(_ended(chosen), _ended(rejected)) for chosen, rejected in (pairs[i] for i in range(len(records)))]

    def encode_examples(self, records: Records) -> list[Example]:
        """The sequences of ``encode_pairs``, the rejected one of each pair after the chosen one."""
        return [example for pair in self.encode_pairs(records) for example in pair]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return self._plain.decode(token_ids)

    @cached_property
    def _plain(self) -> TextEncoder:
        """Encodes texts as they are."""
        return TextEncoder(self.tokenizer, self.fields.prompt_key, None, use_chat_template=False)

    def _encode(
        self, answer_key: str, pairs: Sequence[tuple[str | Messages | None, str | Messages]], is_rendered: bool
    ) -> list[Example]:
        prompt_key = self.fields.prompt_key
        encoder = TextEncoder(self.tokenizer, prompt_key, answer_key, self.use_chat_template and not is_rendered)
        return encoder.encode_examples([{prompt_key: prompt, answer_key: answer} for prompt, answer in pairs])

    def _encode_whole(self, preferences: Sequence[Preference]) -> list[Pair]:
        """Dialogues whose prompt ends unmarked: the prompt is the tokens that they have in common, as in AReaL."""
        texts = [text for preference in preferences for text in (preference.chosen, preference.rejected)]
        encoded = self._plain.encode_prompts([{self.fields.prompt_key: text} for text in texts])
        ids = [(*tokens, self.tokenizer.eos_token_id) for tokens in encoded]
        return [_separated(chosen, rejected) for chosen, rejected in zip(ids[::2], ids[1::2], strict=True)]


def build_encoder(tokenizer: Any, data: Any, use_chat_template: bool = True) -> TextEncoder | PreferenceEncoder:
    """The encoder of the records of a section ``data``.

    Args:
        tokenizer: a ``transformers`` tokenizer; ``None`` to read texts only.
    """
    fields = fields_of(data)
    if isinstance(fields, PreferenceFields):
        return PreferenceEncoder(tokenizer, fields, use_chat_template)
    return TextEncoder(tokenizer, data.prompt_key, data.answer_key, use_chat_template)


def preference_batch(encoder: PreferenceEncoder, records: Records) -> Batch:
    """A batch with two sequences per record and the field ``PAIRS``; the loss mask covers the answers."""
    batch = supervised_batch(encoder, records)
    return batch.with_fields(sequence_fields={PAIRS: torch.arange(len(records)).repeat_interleave(2)})


def chosen_batch(encoder: PreferenceEncoder, records: Records) -> Batch:
    """The chosen sequences alone, for supervised training."""
    batch = supervised_batch(encoder, records)
    return batch.select(range(0, len(batch), 2))


def longest_of_pair(encoder: PreferenceEncoder, records: Records) -> list[int]:
    """Tokens of the longer sequence of each pair."""
    return [max(len(example.ids) for example in pair) for pair in encoder.encode_pairs(records)]


def pair_lengths(encoder: PreferenceEncoder, records: Records) -> list[int]:
    """Tokens of both sequences of each pair, which share a micro-batch."""
    return [sum(len(example.ids) for example in pair) for pair in encoder.encode_pairs(records)]


def _ended(example: Example) -> Example:
    """The sequence up to its last trained token, as a sampled completion ends: a chat template may write more."""
    end = len(example.trained) - example.trained[::-1].index(True)
    return Example(example.ids[:end], example.trained[:end])


def _separated(chosen: tuple[int, ...], rejected: tuple[int, ...]) -> Pair:
    n_common = common_length(chosen, rejected)
    if n_common == 0:
        raise DataError(
            "the texts of the chosen and the rejected answer: found no common beginning, so there is no prompt; begin "
            "both with the same text, or set data.prompt_key to the field with the prompt"
        )

    def example(ids: tuple[int, ...]) -> Example:
        return Example(ids, tuple(place >= n_common for place in range(len(ids))))

    return example(chosen), example(rejected)
