"""Encodes records to token ids, in one way for supervised training, rollout and evaluation.

If prompt and answer are texts, they are encoded separately: in one text, a token could span the boundary, and training
would see prompt tokens that never occur in generation. A conversation is encoded as a whole, as its chat template
renders it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from archon_core.contracts.batch import Batch
from archon_core.errors import DataError
from archon_engine.models.text import decode_literally, encode_texts, render_chat
from archon_rl.conversations import encode_conversation
from archon_rl.fields import Fields, Messages, ends_with_assistant
from archon_rl.losses.aggregation import LOSS_MASK

_NO_TOKEN_FIX = "use tokenizer.kind=bpe, which encodes any text, or remove the record"
_TEXT_FIX = "set tokenizer.use_chat_template=false to encode the prompt as it is, or choose another tokenizer_path"
_MESSAGES_FIX = "set tokenizer_path to a tokenizer whose template can render the conversation, or correct the record"


def is_plain(tokenizer: Any, *, use_chat_template: bool) -> bool:
    """Whether prompts are encoded as they are: there is no chat template, or the run does not use it.

    Args:
        tokenizer: a ``transformers`` tokenizer.
        use_chat_template: ``tokenizer.use_chat_template``.
    """
    return not use_chat_template or tokenizer.chat_template is None


@dataclass(frozen=True)
class Example:
    """A sequence for supervised training.

    Attributes:
        ids: token ids.
        trained: per token, whether it counts in the loss.
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...]


@dataclass(frozen=True)
class TextEncoder:
    """Encodes the prompts and answers of records.

    Attributes:
        tokenizer: a ``transformers`` tokenizer with an end-of-text token.
        prompt_key: field of the prompt; dots address nested objects.
        answer_key: field of the answer; ``None`` for none.
        use_chat_template: format a text prompt as a user message if the tokenizer has a chat template.
    """

    tokenizer: Any
    prompt_key: str
    answer_key: str | None
    use_chat_template: bool = True

    @cached_property
    def fields(self) -> Fields:
        """The reader of the two fields."""
        return Fields(self.prompt_key, self.answer_key)

    def prompt(self, record: Mapping[str, Any]) -> str:
        """The prompt as rewards get it: the text, or the content of a conversation's last message."""
        value = self.fields.prompt(record)
        return value if isinstance(value, str) else value[-1].get("content", "")

    def texts(self, record: Mapping[str, Any]) -> Iterator[str]:
        """All texts of the record, to build a tokenizer from."""
        for value in (self.fields.prompt(record), self.fields.answer(record)):
            if isinstance(value, str):
                yield value
            else:
                yield from (message.get("content", "") for message in value or ())

    def encode_prompt(self, record: Mapping[str, Any]) -> tuple[int, ...]:
        """Token ids of the prompt; see ``encode_prompts``."""
        return self.encode_prompts([record])[0]

    def encode_prompts(self, records: Sequence[Mapping[str, Any]]) -> list[tuple[int, ...]]:
        """Token ids of each record's prompt, rendered by the chat template or with the tokenizer's special tokens.

        Raises:
            DataError: a field is missing or invalid, the tokenizer has no token for a character, the prompt has no
                tokens, the chat template fails, or a conversation ends with an assistant turn.
        """
        texts, encoded = [], []
        for record in records:
            value = self.fields.prompt(record)
            if ends_with_assistant(value):
                raise DataError(
                    f"data.prompt_key={self.prompt_key!r}: found a conversation that ends with the assistant's turn, "
                    "which leaves no answer to sample; remove that turn, or train on it with algorithm=sft"
                )
            texts.append(self._render(value))
        # A chat template writes the special tokens itself.
        for rendered in (True, False):
            group = [text for text, is_rendered in texts if is_rendered is rendered]
            encoded.append(iter(self._encode(group, add_special_tokens=not rendered)))
        prompts = [next(encoded[0] if is_rendered else encoded[1]) for _, is_rendered in texts]
        for (text, _), ids in zip(texts, prompts, strict=True):
            if not ids:
                raise DataError(f"prompt {text!r}: found no tokens; a prompt needs at least one token")
        return prompts

    def encode_messages(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[int, ...]:
        """Token ids of a conversation and the start of an answer, rendered by the chat template.

        Args:
            messages: the conversation.
            tools: descriptions of functions that the answer may call, as JSON schemas; ``None`` for none.

        Raises:
            DataError: there is no chat template, it fails, or the tokenizer has no token for a character.
        """
        self._require_template()
        text = render_chat(self.tokenizer, messages, generation_prompt=True, fix=_MESSAGES_FIX, tools=tools)
        return self._encode([text], add_special_tokens=False)[0]

    def encode_answer(self, record: Mapping[str, Any]) -> tuple[int, ...]:
        """Token ids of a text answer, with the end-of-text token.

        Raises:
            DataError: as ``encode_prompts``.
        """
        answer = self.fields.answer(record)
        assert isinstance(answer, str), "answers that are conversations are encoded with their prompts"
        return self._encode_answers([answer])[0]

    def encode_examples(self, records: Sequence[Mapping[str, Any]]) -> list[Example]:
        """Encode records for supervised training.

        The loss is on the answer and the end-of-text token, or on the assistant turns of a conversation; if prompt and
        answer are both messages, on the assistant turns of the answer.

        Raises:
            DataError: as ``encode_prompts``; there is nothing to train on; or the chat template does not separate
                turns.
        """
        examples: list[Example | None] = []
        pairs: list[Mapping[str, Any]] = []
        answers: list[str] = []
        for record in records:
            answer = self.fields.answer(record)
            if isinstance(answer, str):
                if ends_with_assistant(self.fields.prompt(record)):
                    raise DataError(
                        f"data.prompt_key={self.prompt_key!r}: found a conversation that ends with the assistant's "
                        f"turn, and another answer in {self.answer_key!r}; set data.answer_key=null to train on the "
                        "conversation, or remove that turn"
                    )
                pairs.append(record)
                answers.append(answer)
                examples.append(None)
            else:
                examples.append(self._encode_turns(self.fields.prompt(record), answer))
        encoded = zip(self.encode_prompts(pairs), self._encode_answers(answers), strict=True)
        return [_continued(*next(encoded)) if example is None else example for example in examples]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def decode_literally(self, token_ids: Sequence[int]) -> str:
        """Text with special tokens, in which ``gconfig.stop`` is found."""
        return decode_literally(self.tokenizer, token_ids)

    def _encode_turns(self, prompt: str | Messages, answer: Messages | None) -> Example:
        context: Messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
        if answer is None and not ends_with_assistant(prompt):
            raise DataError(
                f"data.prompt_key={self.prompt_key!r}: found a prompt without an answer to train on; add an "
                "assistant turn to the conversation, or set data.answer_key to the field with the answer"
            )
        self._require_template()
        ids, trained = encode_conversation(
            self.tokenizer, context + (answer or ()), first_trained=len(context) if answer else 0
        )
        return Example(ids, tuple(trained))

    def _encode_answers(self, answers: Sequence[str]) -> list[tuple[int, ...]]:
        return [(*ids, self.tokenizer.eos_token_id) for ids in self._encode(answers, add_special_tokens=False)]

    def _render(self, prompt: str | Messages) -> tuple[str, bool]:
        """The prompt as text, and whether a chat template rendered it."""
        if isinstance(prompt, str):
            if is_plain(self.tokenizer, use_chat_template=self.use_chat_template):
                return prompt, False
            message = {"role": "user", "content": prompt}
            return render_chat(self.tokenizer, [message], generation_prompt=True, fix=_TEXT_FIX), True
        self._require_template()
        return render_chat(self.tokenizer, prompt, generation_prompt=True, fix=_MESSAGES_FIX), True

    def _require_template(self) -> None:
        if is_plain(self.tokenizer, use_chat_template=self.use_chat_template):
            why = "tokenizer.use_chat_template is false" if not self.use_chat_template else "the tokenizer has none"
            raise DataError(
                f"found messages, which need a chat template, and {why}; set tokenizer_path to a tokenizer with a "
                "template and tokenizer.use_chat_template=true, or use records with text prompts"
            )

    def _encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[tuple[int, ...]]:
        return encode_texts(self.tokenizer, texts, add_special_tokens=add_special_tokens, fix=_NO_TOKEN_FIX)


def supervised_batch(encoder: TextEncoder, records: Sequence[Mapping[str, Any]]) -> Batch:
    """A batch of whole sequences with the loss mask of ``TextEncoder.encode_examples``."""
    examples = encoder.encode_examples(records)
    return Batch.from_sequences(
        [example.ids for example in examples],
        token_fields={LOSS_MASK: [predictions_of(example.trained) for example in examples]},
    )


def comparison_batch(encoder: TextEncoder, records: Sequence[Mapping[str, Any]]) -> Batch:
    """Sequences to compare two models on: prompt and answer, or the prompt alone where the answer cannot be encoded.

    In reinforcement learning an answer may be any value that the reward reads.
    """
    sequences = []
    for record in records:
        try:
            sequences.append(encoder.encode_examples([record])[0].ids)
        except DataError:
            sequences.append(encoder.encode_prompt(record))
    return Batch.from_sequences(sequences)


def predictions_of(trained: Sequence[bool]) -> list[bool]:
    """The mask of predictions for a mask of tokens: position t predicts token t + 1, the last position nothing.

    >>> predictions_of([False, True, True])
    [True, True, False]
    """
    return [*trained[1:], False]


def _continued(prompt: tuple[int, ...], answer: tuple[int, ...]) -> Example:
    return Example(prompt + answer, (False,) * len(prompt) + (True,) * len(answer))
