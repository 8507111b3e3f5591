"""``Task``: the records, the tokenizer and the order of records of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from archon_core.contracts.data import Dataset
from archon_core.contracts.decisions import Decision
from archon_core.errors import DataError
from archon_core.models.end_tokens import EndTokens
from archon_core.plugins import registry
from archon_core.ranks.failing_together import failing_together
from archon_engine.checkpoint.publication import publish_folder
from archon_engine.models.tokenizer import save_tokenizer
from archon_rl.datasets.cursor import DataCursor
from archon_rl.datasets.placed_record import read_placed
from archon_rl.datasets.records import SubsetDataset, place_of
from archon_rl.fields import with_location
from archon_rl.preference_encoding import PreferenceEncoder, build_encoder
from archon_rl.text_encoding import TextEncoder
from archon_rl.tokenization import build_tokenizer, load_tokenizer
from archon_rl.trainer.checkpointing import TOKENIZER_FOLDER, resumed_checkpoint
from archon_rl.trainer.equal_pairs import without_equal_pairs
from archon_rl.trainer.resuming import refresh_tokenizer
from archon_rl.trainer.sequence_lengths import (
    LengthLimit,
    Measure,
    drop_decision,
    find_overlong,
    measure_lengths,
    overlong_error,
)
from archon_rl.trainer.stopping import run_end_tokens, save_end_tokens
from archon_train.experiment import TrainerConfig
from archon_train.run.context import RunContext


@dataclass(frozen=True)
class Task:
    """The data side of a run.

    Attributes:
        encoder: encodes records to token ids.
        train: training records.
        validation: held-out records; may be empty.
        cursor: maps steps to training records.
        ends: the tokens that end a completion.
        kept: indices of ``train`` in the whole training split; ``None`` for all of it.
        kept_held_out: indices of ``validation`` in the whole held-out split; ``None`` for all of it.
    """

    encoder: TextEncoder | PreferenceEncoder
    train: Dataset
    validation: Dataset
    cursor: DataCursor
    ends: EndTokens
    kept: Sequence[int] | None = None
    kept_held_out: Sequence[int] | None = None

    def total_steps(self, trainer: TrainerConfig) -> int:
        """Number of training steps that the section ``trainer`` asks for, at least one."""
        return trainer.max_steps or max(1, self.cursor.steps(trainer.max_epochs))

    def records(self, step: int) -> list[Mapping[str, Any]]:
        """The batch of ``step``, counted from 0, each record with its location in the data."""
        return [read_placed(self.train, index) for index in self.cursor.indices(step)]

    def more_records(self, step: int, n: int) -> list[Mapping[str, Any]]:
        """The next ``n`` records, which ``step`` draws in addition to its batch."""
        return [read_placed(self.train, index) for index in self.cursor.refill(step, n)]


def build_task(
    run: RunContext,
    measure: Measure,
    limits: Sequence[LengthLimit] = (),
    held_out_limits: Sequence[LengthLimit] | None = None,
) -> Task:
    """Load the data sets and build the tokenizer; a resumed run reads the tokenizer from its folder.

    Encodes every record once, so that an invalid record fails here and not in the step that draws it.

    Args:
        run: the run; its folder holds the tokenizer.
        measure: the length that ``data.max_length`` limits.
        limits: the longest records that a step can take; ``data.overlong`` decides about longer ones.
        held_out_limits: the longest records that an evaluation can take; ``None`` for the same.

    Raises:
        ConfigError, DataError, ModelError: from the data set, the tokenizer and ``run_end_tokens``; a record cannot be
            encoded or is too long.
    """
    config, data = run.config, run.config.data
    load = registry().get("dataset", data.dataset).load()
    train = load(data, split="train", seed=config.seed)
    validation = load(data, split="validation", seed=config.seed)
    tokenizer = _tokenizer(run, train, validation)
    encoder = build_encoder(tokenizer, data, config.tokenizer.use_chat_template)
    if isinstance(encoder, PreferenceEncoder):
        train = without_equal_pairs(run, "training", train, encoder.fields)
        validation = without_equal_pairs(run, "held-out", validation, encoder.fields)
    kept_train = _drop_overlong(run, "training", train, encoder, measure, limits)
    held_out_limits = limits if held_out_limits is None else held_out_limits
    kept_validation = _drop_overlong(run, "held-out", validation, encoder, measure, held_out_limits)
    ends = run_end_tokens(run, tokenizer)
    with failing_together(run.ranks):
        if run.ranks.is_first:
            save_end_tokens(run, ends, run.folder.path / TOKENIZER_FOLDER)
    cursor = DataCursor(len(kept_train), data.batch_size, config.seed, data.shuffle)
    return Task(
        encoder,
        kept_train,
        kept_validation,
        cursor,
        ends,
        kept=None if kept_train is train else kept_train.indices,
        kept_held_out=None if kept_validation is validation else kept_validation.indices,
    )


def _drop_overlong(
    run: RunContext,
    what: str,
    dataset: Dataset,
    encoder: TextEncoder | PreferenceEncoder,
    measure: Measure,
    limits: Sequence[LengthLimit],
) -> Dataset:
    """The records within the limits; dropped records are noted, or recorded as a decision."""
    data = run.config.data
    lengths: dict[Measure, list[int]] = {}
    with failing_together(run.ranks):
        if run.ranks.is_first:
            lengths = {
                each: measure_lengths(dataset, encoder, each)
                for each in {measure, *(limit.measure for limit in limits)}
            }
    # Sent in this order: a dictionary keyed by functions would have to pickle them.
    measures = [measure, *(limit.measure for limit in limits)]
    own, *limited = run.ranks.broadcast([lengths[one] for one in measures] if run.ranks.is_first else [])
    kept = [i for i in range(len(dataset)) if data.max_length is None or own[i] <= data.max_length]
    if len(dataset) and not kept:
        raise DataError(
            f"data.max_length: found {data.max_length}, and all {len(dataset)} {what} records are longer; raise it"
        )
    if len(kept) < len(dataset):
        run.progress.note(
            f"Left out {len(dataset) - len(kept)} of {len(dataset)} {what} records: longer than "
            f"data.max_length={data.max_length} tokens"
        )
    decisions: list[Decision] = []
    for limit, tokens in sorted(zip(limits, limited, strict=True), key=lambda pair: pair[0].longest):
        too_long = find_overlong(tokens, limit, kept)
        if not too_long:
            continue
        if data.overlong == "error" or len(too_long) == len(kept):
            raise overlong_error(what, dataset, tokens, too_long, limit)
        decisions.append(drop_decision(what, dataset, tokens, too_long, limit))
        gone = set(too_long)
        kept = [index for index in kept if index not in gone]
    run.record(decisions)
    return dataset if len(kept) == len(dataset) else SubsetDataset(dataset, kept)


def _tokenizer(run: RunContext, *datasets: Dataset) -> Any:
    """The first rank builds the tokenizer and the others read it, so that all have the same one."""
    folder = run.folder.path / TOKENIZER_FOLDER
    if resumed_checkpoint(run) is not None:
        with failing_together(run.ranks):
            if run.ranks.is_first:
                refresh_tokenizer(run, folder)
        return load_tokenizer(folder)
    tokenizer = None
    with failing_together(run.ranks):
        if run.ranks.is_first:
            texts = chain.from_iterable(_texts(dataset, run.config.data) for dataset in datasets)
            tokenizer = build_tokenizer(run.config, texts)
            with publish_folder(folder) as writing:
                save_tokenizer(tokenizer, writing)
    return load_tokenizer(folder) if tokenizer is None else tokenizer


def _texts(dataset: Dataset, data: Any) -> Iterator[str]:
    reader = build_encoder(None, data)
    for index in range(len(dataset)):
        with with_location(place_of(dataset, index)):
            texts = list(reader.texts(dataset[index]))
        yield from texts
