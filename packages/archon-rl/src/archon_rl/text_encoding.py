"""From a record's text to token ids, the same way in supervised training, rollout and evaluation.

Prompt and answer are encoded apart: tokenizing them as one text could merge characters over the border, and a
model would then see prompts in training that it never sees when it generates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from archon_core.contracts.batch import Batch
from archon_core.errors import DataError
from archon_rl.losses.aggregation import LOSS_MASK


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer with the conventions of this package.

    Attributes:
        tokenizer: a ``transformers`` tokenizer with an end-of-text token.
        prompt_key: the record's field with the prompt.
        answer_key: and the one with the answer.
        use_chat_template: format the prompt as a user's message when the tokenizer has a chat template.
    """

    tokenizer: Any
    prompt_key: str
    answer_key: str
    use_chat_template: bool = True

    def prompt(self, record: Mapping[str, Any]) -> str:
        """The record's prompt as text."""
        return str(record[self.prompt_key])

    def encode_prompt(self, record: Mapping[str, Any]) -> tuple[int, ...]:
        """Ids of the prompt, with whatever the tokenizer puts at the start of a text.

        Raises:
            DataError: the tokenizer has no token for a character, or the prompt has no tokens.
        """
        text = self.prompt(record)
        if self.use_chat_template and self.tokenizer.chat_template is not None:
            message = [{"role": "user", "content": text}]
            text = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            # The template writes the special tokens itself.
            ids = self._encode(text, add_special_tokens=False)
        else:
            ids = self._encode(text, add_special_tokens=True)
        if not ids:
            raise DataError(f"prompt {text!r}: it has no tokens; a model needs at least one to continue from")
        return ids

    def encode_answer(self, record: Mapping[str, Any]) -> tuple[int, ...]:
        """Ids of the answer and the end of text."""
        text = str(record[self.answer_key])
        return (*self._encode(text, add_special_tokens=False), self.tokenizer.eos_token_id)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def _encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        ids = tuple(self.tokenizer.encode(text, add_special_tokens=add_special_tokens))
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            raise DataError(
                f"text {text!r}: the tokenizer has no token for part of it, so the model could not see it; "
                "use tokenizer.kind=bpe, which encodes any text, or remove the record"
            )
        return ids


def supervised_batch(encoder: TextEncoder, records: Sequence[Mapping[str, Any]]) -> Batch:
    """Prompt, answer and end of text per record, with the loss on the answer and the end of text only."""
    pairs = [(encoder.encode_prompt(record), encoder.encode_answer(record)) for record in records]
    return Batch.from_sequences(
        [prompt + answer for prompt, answer in pairs],
        token_fields={LOSS_MASK: [continuation_mask(len(prompt), len(answer)) for prompt, answer in pairs]},
    )


def continuation_mask(prompt_length: int, continuation_length: int) -> list[bool]:
    """Which predictions yield the continuation: aligned to predictions, so from the prompt's last token on.

    >>> continuation_mask(2, 3)
    [False, True, True, True, False]
    """
    return [False] * (prompt_length - 1) + [True] * continuation_length + [False]
