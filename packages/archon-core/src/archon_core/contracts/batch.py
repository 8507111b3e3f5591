"""A batch of variable-length sequences, packed end to end: no padding, one long token dimension.

Legend: T tokens of all sequences together, S sequences.

Per-token fields are aligned to *predictions*: the value at position t belongs to the prediction made there,
that is to token t + 1 of the same sequence. The last position of a sequence predicts nothing.
``align_to_predictions`` turns per-token data that is aligned to the tokens themselves into this form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from archon_core.contracts.packed import ContextRanks, OutputName, PackedSequences
from archon_core.errors import DataError

NO_TARGET = -1
"""Target id of a position that predicts nothing; outputs there are 0."""

ROUTED_EXPERTS = "routed_experts"
"""Token field, int16 [T, layers, k], aligned to tokens: the experts to which a rollout routed each token; -1 if
unknown."""


PER_TOKEN: tuple[OutputName, ...] = ("values", "logits")
"""Outputs that a head computes once per token of a pack. The others it computes once per prediction."""


@dataclass(frozen=True)
class Batch:
    """Packed sequences with their per-token and per-sequence fields.

    Attributes:
        input_ids: int64 [T].
        lengths: tokens per sequence, S positive numbers that sum to T.
        token_fields: name -> tensor [T, ...], aligned to predictions.
        sequence_fields: name -> tensor [S, ...].
    """

    input_ids: Tensor
    lengths: tuple[int, ...]
    token_fields: Mapping[str, Tensor] = field(default_factory=dict)
    sequence_fields: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if any(length < 1 for length in self.lengths):
            raise DataError(f"batch: found a sequence of {min(self.lengths)} tokens; every sequence needs at least 1")
        tokens, sequences = sum(self.lengths), len(self.lengths)
        if self.input_ids.shape != (tokens,):
            raise DataError(
                f"batch: found input_ids of shape {tuple(self.input_ids.shape)} with lengths that sum to {tokens}; "
                "pack the sequences end to end into one dimension"
            )
        for kind, fields, size in (("token", self.token_fields, tokens), ("sequence", self.sequence_fields, sequences)):
            for name, value in fields.items():
                if value.shape[:1] != (size,):
                    raise DataError(
                        f"batch: found {kind} field {name!r} of shape {tuple(value.shape)}; "
                        f"allowed is a first dimension of {size}; pass one row per {kind}"
                    )

    @classmethod
    def from_sequences(
        cls,
        sequences: Sequence[Sequence[int] | Tensor],
        token_fields: Mapping[str, Sequence[Sequence[float] | Tensor]] | None = None,
        sequence_fields: Mapping[str, Tensor] | None = None,
    ) -> Batch:
        """Pack S id sequences and, per token field, S rows of the same lengths (aligned to predictions)."""
        ids = [torch.as_tensor(s, dtype=torch.int64) for s in sequences]
        packed = {name: torch.cat([torch.as_tensor(r) for r in rows]) for name, rows in (token_fields or {}).items()}
        return cls(
            input_ids=torch.cat(ids) if ids else torch.empty(0, dtype=torch.int64),
            lengths=tuple(len(s) for s in ids),
            token_fields=packed,
            sequence_fields=dict(sequence_fields or {}),
        )

    @classmethod
    def concatenate(cls, batches: Sequence[Batch]) -> Batch:
        """The sequences of all ``batches``, at least one, which have the same fields."""
        if len(batches) == 1:
            return batches[0]
        first = batches[0]
        return cls(
            input_ids=torch.cat([batch.input_ids for batch in batches]),
            lengths=tuple(length for batch in batches for length in batch.lengths),
            token_fields={name: torch.cat([b.token_fields[name] for b in batches]) for name in first.token_fields},
            sequence_fields={
                name: torch.cat([b.sequence_fields[name] for b in batches]) for name in first.sequence_fields
            },
        )

    def __len__(self) -> int:
        """The number of sequences, S."""
        return len(self.lengths)

    @property
    def n_tokens(self) -> int:
        """The number of tokens, T."""
        return sum(self.lengths)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """S + 1 positions: where each sequence starts, and T."""
        return (0, *accumulate(self.lengths))

    @cached_property
    def sequence_ids(self) -> Tensor:
        """int64 [T]: which sequence each token belongs to."""
        counts = torch.tensor(self.lengths, dtype=torch.int64, device=self.input_ids.device)
        return torch.repeat_interleave(torch.arange(len(self), device=self.input_ids.device), counts)

    @cached_property
    def targets(self) -> Tensor:
        """int64 [T]: the next token of the same sequence, ``NO_TARGET`` at each sequence's last position."""
        return align_to_predictions(self.input_ids, self.lengths, fill=NO_TARGET)

    def select(self, indices: Sequence[int]) -> Batch:
        """The sequences at ``indices``, in that order."""
        spans = [slice(self.offsets[i], self.offsets[i + 1]) for i in indices]
        rows = torch.as_tensor(indices, dtype=torch.int64)

        def gather(value: Tensor) -> Tensor:
            return torch.cat([value[span] for span in spans]) if spans else value[:0]

        return Batch(
            input_ids=gather(self.input_ids),
            lengths=tuple(self.lengths[i] for i in indices),
            token_fields={name: gather(value) for name, value in self.token_fields.items()},
            sequence_fields={name: v[rows.to(v.device)] for name, v in self.sequence_fields.items()},
        )

    def with_fields(
        self,
        token_fields: Mapping[str, Tensor] | None = None,
        sequence_fields: Mapping[str, Tensor] | None = None,
    ) -> Batch:
        """The same sequences with these fields added or replaced."""
        return replace(
            self,
            token_fields={**self.token_fields, **(token_fields or {})},
            sequence_fields={**self.sequence_fields, **(sequence_fields or {})},
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on ``device``."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            token_fields={name: value.to(device) for name, value in self.token_fields.items()},
            sequence_fields={name: value.to(device) for name, value in self.sequence_fields.items()},
        )

    def sum_per_sequence(self, values: Tensor) -> Tensor:
        """Sum per-token ``values`` [T] over each sequence: [S]."""
        return torch.zeros(len(self), dtype=values.dtype, device=values.device).index_add(0, self.sequence_ids, values)


def align_to_predictions(values: Tensor, lengths: Sequence[int], fill: float = 0) -> Tensor:
    """Shift per-token ``values`` [T, ...] one place to the left inside each sequence; the last place gets ``fill``."""
    shifted = torch.roll(values, -1, 0)
    if lengths:
        last = torch.tensor(list(accumulate(lengths)), device=values.device) - 1
        shifted[last] = fill
    return shifted


@dataclass(frozen=True)
class Expansion:
    """From the outputs of a pack with shared prefixes to those of its sequences.

    Legend: N tokens of all sequences.

    Attributes:
        tokens: int64 [N], the token of the pack that stands for each token of the sequences.
        predictions: int64 [N], the place of each token's prediction among log-probabilities and entropies, those of
            context ranks in rank order; -1 for none.
    """

    tokens: Tensor
    predictions: Tensor

    def join(self, name: OutputName, output: Tensor, context: ContextRanks) -> Tensor:
        """The outputs of all context ranks. Ranks make equally many predictions, whichever tokens these are for."""
        return context.gather_outputs(output) if name in PER_TOKEN else context.gather_rows(output)

    def expand(self, name: OutputName, output: Tensor) -> Tensor:
        """The output [N, ...] of the sequences, 0 where nothing is predicted. Backward sums over the sequences that
        share a value."""
        if name in PER_TOKEN:
            return output.index_select(0, self.tokens)
        places = self.predictions.clamp(min=0)
        return torch.where(self.predictions >= 0, output.index_select(0, places), 0)


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass.

    Padding, if any, is one sequence after the others, so no real token attends to it.

    Attributes:
        batch: the sequences without padding, for the loss.
        indices: their indices in the whole batch.
        input_ids: int64 [padded tokens]; only this rank's tokens with ``packed.context``.
        packed: the sequences and the padding.
        expansion: how the outputs of shared prefixes become those of sequences; ``None`` if nothing is shared.
    """

    batch: Batch
    indices: tuple[int, ...]
    input_ids: Tensor
    packed: PackedSequences
    expansion: Expansion | None = None

    def whole_outputs(self, outputs: Mapping[OutputName, Tensor]) -> dict[OutputName, Tensor]:
        """Per-token ``outputs`` of all real tokens, including those of other context ranks, over which this is
        collective."""
        context, expansion = self.packed.context, self.expansion
        if expansion is None:
            whole = outputs if context is None else {name: context.gather_outputs(v) for name, v in outputs.items()}
            return {name: value[: self.batch.n_tokens] for name, value in whole.items()}
        whole = outputs if context is None else {name: expansion.join(name, v, context) for name, v in outputs.items()}
        return {name: expansion.expand(name, value) for name, value in whole.items()}
