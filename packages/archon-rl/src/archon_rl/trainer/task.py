"""What is trained on: records, tokenizer, and the order in which records come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from archon_core.distributed.failing_together import failing_together
from archon_core.errors import DataError
from archon_core.models.end_tokens import EndTokens
from archon_core.plugins import registry
from archon_core.protocols import Dataset
from archon_core.run.context import RunContext
from archon_core.run.publication import publish_folder
from archon_rl.datasets.cursor import DataCursor
from archon_rl.datasets.records import SubsetDataset
from archon_rl.text_encoding import TextEncoder
from archon_rl.tokenization import build_tokenizer, load_tokenizer
from archon_rl.trainer.checkpointing import TOKENIZER_FOLDER, resumed_checkpoint
from archon_rl.trainer.resuming import renew_tokenizer
from archon_rl.trainer.stopping import keep_end_tokens, run_end_tokens

Measure = Callable[[TextEncoder, Mapping[str, Any]], int]
"""Tokens of a record, as ``data.max_length`` counts them."""


@dataclass(frozen=True)
class Task:
    """The data side of a run.

    Attributes:
        encoder: from records to token ids.
        train: records to train on.
        validation: held-out records; may be empty.
        cursor: which training records belong to which step.
        ends: the tokens that end a completion.
    """

    encoder: TextEncoder
    train: Dataset
    validation: Dataset
    cursor: DataCursor
    ends: EndTokens

    def records(self, step: int) -> list[Mapping[str, Any]]:
        """The records of ``step``, counted from 0."""
        return [self.train[index] for index in self.cursor.indices(step)]


def build_task(run: RunContext, measure: Measure) -> Task:
    """Load the data sets, and build the tokenizer, or read the one that a resumed run built before.

    Args:
        run: the run; its folder keeps the tokenizer.
        measure: what ``data.max_length`` limits.

    Raises:
        ConfigError, DataError, ModelError: as the data set, the tokenizer and ``run_end_tokens`` do.
    """
    config, data = run.config, run.config.data
    load = registry().get("dataset", data.dataset).load()
    train = load(data, split="train", seed=config.seed)
    validation = load(data, split="validation", seed=config.seed)
    tokenizer = _tokenizer(run, train, validation)
    encoder = TextEncoder(tokenizer, data.prompt_key, data.answer_key, config.tokenizer.use_chat_template)
    kept_train, kept_validation = (_keep_short(s, encoder, data.max_length, measure) for s in (train, validation))
    left_out = len(train) - len(kept_train), len(validation) - len(kept_validation)
    if not len(kept_train):
        raise DataError(
            f"data.max_length={data.max_length}: none of the {len(train)} training records is that short; raise it"
        )
    if any(left_out):
        run.progress.note(
            f"Left out {left_out[0]} of {len(train)} training and {left_out[1]} of {len(validation)} held-out records: "
            f"longer than data.max_length={data.max_length} tokens"
        )
    ends = run_end_tokens(run, tokenizer)
    with failing_together(run.ranks):
        if run.ranks.is_first:
            keep_end_tokens(run, ends, run.folder.path / TOKENIZER_FOLDER)
    cursor = DataCursor(len(kept_train), data.batch_size, config.seed, data.shuffle)
    return Task(encoder, kept_train, kept_validation, cursor, ends)


def _tokenizer(run: RunContext, *datasets: Dataset) -> Any:
    """Built by the first rank and read by the others, so that all have the same."""
    folder = run.folder.path / TOKENIZER_FOLDER
    if resumed_checkpoint(run) is not None:
        with failing_together(run.ranks):
            if run.ranks.is_first:
                renew_tokenizer(run, folder)
        return load_tokenizer(folder)
    tokenizer = None
    with failing_together(run.ranks):
        if run.ranks.is_first:
            keys = (run.config.data.prompt_key, run.config.data.answer_key)
            texts = chain.from_iterable(_texts(dataset, keys) for dataset in datasets)
            tokenizer = build_tokenizer(run.config, texts)
            with publish_folder(folder) as writing:
                tokenizer.save_pretrained(writing)
    return load_tokenizer(folder) if tokenizer is None else tokenizer


def _texts(dataset: Dataset, keys: tuple[str, ...]) -> Iterator[str]:
    for index in range(len(dataset)):
        record = dataset[index]
        yield from (str(record[key]) for key in keys)


def _keep_short(dataset: Dataset, encoder: TextEncoder, limit: int | None, measure: Measure) -> Dataset:
    if limit is None:
        return dataset
    return SubsetDataset(dataset, [i for i in range(len(dataset)) if measure(encoder, dataset[i]) <= limit])


def whole_length(encoder: TextEncoder, record: Mapping[str, Any]) -> int:
    """Tokens of prompt, answer and end of text."""
    return prompt_length(encoder, record) + len(encoder.encode_answer(record))


def prompt_length(encoder: TextEncoder, record: Mapping[str, Any]) -> int:
    """Tokens of the prompt."""
    return len(encoder.encode_prompt(record))
