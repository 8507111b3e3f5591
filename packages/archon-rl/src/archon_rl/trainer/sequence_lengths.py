"""Token counts of all records, checked against the limits of the run before the first step.

A run must not fail in the step that happens to draw an overlong record. Every record is encoded once at the start,
which also finds records that cannot be encoded, and compared with the limits of the model's positions, the generation
options and the micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from archon_core.contracts.data import Dataset
from archon_core.contracts.decisions import Decision
from archon_core.errors import ArchonError, DataError
from archon_engine.models.context_length import ContextLength, context_length
from archon_engine.models.hf_config import load_hf_config
from archon_rl.datasets.records import COUNTED, place_of
from archon_rl.fields import with_location
from archon_rl.preference_encoding import PreferenceEncoder, longest_of_pair, pair_lengths
from archon_rl.text_encoding import TextEncoder
from archon_rl.workflows.context_limit import UNLIMITED, ContextLimit

Records = Sequence[Mapping[str, Any]]
Measure = Callable[[Any, Records], list[int]]
"""(encoder, records) -> tokens per record."""

CHUNK = 1000
"""Number of records to encode together."""

NAMED = 5
"""Number of records that a message names."""


def example_lengths(encoder: TextEncoder, records: Records) -> list[int]:
    """Tokens of the sequences of supervised training."""
    return [len(example.ids) for example in encoder.encode_examples(records)]


def prompt_lengths(encoder: TextEncoder, records: Records) -> list[int]:
    """Tokens of the prompts. Answers are validated but not encoded: rewards read them as text."""
    for record in records:
        encoder.fields.check(record)
    return [len(ids) for ids in encoder.encode_prompts(records)]


@dataclass(frozen=True)
class LengthLimit:
    """The longest record that a part of the run can take.

    Attributes:
        measure: gives the lengths to limit.
        longest: limit in tokens.
        reason: the option or size that sets the limit.
        fixes: how to raise it.
    """

    measure: Measure
    longest: int
    reason: str
    fixes: tuple[str, ...]


def supervised_limits(engine: Any) -> list[LengthLimit]:
    """Limits of supervised training with the engine section ``engine``."""
    return [LengthLimit(example_lengths, size, reason, (fix,)) for size, reason, fix in _sequence_limits(engine)]


def preference_limits(actor: Any, *others: Any) -> list[LengthLimit]:
    """Limits of training on pairs, whose two sequences share a micro-batch of the section ``actor``.

    Args:
        others: sections of models that read single sequences.
    """
    limits = [LengthLimit(pair_lengths, size, reason, (fix,)) for size, reason, fix in _micro_batch_limits(actor)]
    singles = [*_position_limits(actor), *(limit for other in others for limit in _sequence_limits(other))]
    return limits + [LengthLimit(longest_of_pair, size, reason, (fix,)) for size, reason, fix in singles]


def rollout_limits(gconfig: Any, actor: Any, *others: Any, section: str = "gconfig") -> list[LengthLimit]:
    """Limits of prompts for generation with ``gconfig`` and training on the completions.

    Args:
        actor: section of the trained model.
        others: sections of the models beside it that see prompts with completions.
        section: name of the section ``gconfig``, for messages.
    """
    n_new, most = gconfig.max_new_tokens, gconfig.max_tokens
    limits = []
    if most is not None:
        limits.append(
            LengthLimit(
                prompt_lengths,
                most,
                f"{section}.max_tokens={most} with the completion",
                (f"raise {section}.max_tokens",),
            )
        )
    for size, reason, fix in _rollout_sizes(actor, *others):
        # A completion ends at max_tokens if that is the lower limit.
        if most is None or most > size:
            limits.append(
                LengthLimit(
                    prompt_lengths,
                    size - n_new,
                    f"{reason}, {section}.max_new_tokens={n_new} of them for the completion",
                    (
                        f"lower {section}.max_new_tokens",
                        f"set {section}.max_tokens={size}",
                        *([fix] if fix else []),
                    ),
                )
            )
    return limits


def rollout_context(actor: Any, *others: Any) -> ContextLimit:
    """The longest sequence that the models of a run can generate and train on; see ``rollout_limits``."""
    sizes = [(size, reason) for size, reason, _ in _rollout_sizes(actor, *others)]
    return ContextLimit(*min(sizes)) if sizes else UNLIMITED


def _rollout_sizes(actor: Any, *others: Any) -> Iterator[tuple[int, str, str]]:
    """(limit, reason, fix) for each limit on prompts with completions."""
    context = _context(actor)
    if context.generation is not None and context.generation != context.positions:
        why = "beyond that, the frequencies of its rotary embedding depend on the final length"
        yield context.generation, f"the model generates up to {context.generation} tokens: {why}", ""
    for engine in (actor, *others):
        yield from _sequence_limits(engine)


def measure_lengths(dataset: Dataset, encoder: TextEncoder | PreferenceEncoder, measure: Measure) -> list[int]:
    """Tokens of every record of ``dataset``.

    Raises:
        DataError: a record cannot be encoded; the message starts with its location.
    """
    lengths: list[int] = []
    for indices in _chunks(len(dataset)):
        records = [dataset[index] for index in indices]
        try:
            lengths += measure(encoder, records)
        except DataError:
            # Repeat one by one: the error of a chunk does not name the record.
            for index, record in zip(indices, records, strict=True):
                with with_location(place_of(dataset, index)):
                    measure(encoder, [record])
            raise
    return lengths


def find_overlong(lengths: Sequence[int], limit: LengthLimit, kept: Sequence[int]) -> list[int]:
    """The records among ``kept`` that exceed ``limit``."""
    return [index for index in kept if lengths[index] > limit.longest]


def overlong_error(
    what: str, dataset: Dataset, lengths: Sequence[int], indices: Sequence[int], limit: LengthLimit
) -> DataError:
    """The error for overlong records."""
    fixes = ["shorten them", *limit.fixes]
    if len(indices) < len(dataset):
        fixes.append("leave them out with data.overlong=drop")
    return DataError(
        f"{_named(dataset, lengths, indices)}: {_count(what, dataset, indices)} are too long for the run; "
        f"allowed are {_subject(limit)} of at most {max(limit.longest, 0)} tokens ({limit.reason}); "
        f"{', '.join(fixes[:-1])}, or {fixes[-1]}"
    )


def drop_decision(
    what: str, dataset: Dataset, lengths: Sequence[int], indices: Sequence[int], limit: LengthLimit
) -> Decision:
    """The decision to drop overlong records."""
    return Decision(
        option="data.overlong",
        requested="drop",
        effective=f"{_count(what, dataset, indices)} left out: {_named(dataset, lengths, indices)}",
        reason=f"{_subject(limit)} may have at most {max(limit.longest, 0)} tokens: {limit.reason}",
    )


def longest_sequence(engine: Any) -> int | None:
    """The longest sequence that the model of the section ``engine`` takes; ``None`` without a limit."""
    return min((size for size, _, _ in _sequence_limits(engine)), default=None)


def _sequence_limits(engine: Any) -> Iterator[tuple[int, str, str]]:
    """(limit, reason, fix) for each limit on the sequences that an engine trains on."""
    yield from _position_limits(engine)
    yield from _micro_batch_limits(engine)


def _position_limits(engine: Any) -> Iterator[tuple[int, str, str]]:
    positions = _context(engine).positions
    if positions is not None:
        yield positions, f"the model has {positions} positions (max_position_embeddings)", "choose another model"


def _micro_batch_limits(engine: Any) -> Iterator[tuple[int, str, str]]:
    most = engine.mb_spec.max_tokens_per_mb
    if most is not None:
        yield most, f"mb_spec.max_tokens_per_mb={most}", "raise mb_spec.max_tokens_per_mb"


def _context(engine: Any) -> ContextLength:
    source = engine.model_config if engine.model_config is not None else engine.path
    if not source:
        return ContextLength()
    try:
        return context_length(load_hf_config(source))
    except ArchonError:
        # The engine may read other formats, and reports unreadable models itself.
        return ContextLength()


def _chunks(size: int) -> Iterator[range]:
    for start in range(0, size, CHUNK):
        yield range(start, min(start + CHUNK, size))


def _subject(limit: LengthLimit) -> str:
    return {prompt_lengths: "prompts", pair_lengths: "pairs"}.get(limit.measure, "sequences")


def _count(what: str, dataset: Dataset, indices: Sequence[int]) -> str:
    return f"{len(indices)} of {len(dataset)} {what} records"


def _named(dataset: Dataset, lengths: Sequence[int], indices: Sequence[int]) -> str:
    places = [place_of(dataset, index).removesuffix(COUNTED) for index in indices[:NAMED]]
    names = [f"{place} ({lengths[index]} tokens)" for place, index in zip(places, indices, strict=False)]
    more = len(indices) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
