"""The tokens of a pack that a block sees on this rank, and the sequences they belong to.

A pack ends in padding, which is not routed. Sequences can be sharded twice: over context ranks, and over tensor ranks
between the regions of tensor parallelism.

A pack that shares prefixes (``packed.SharedPrefixes``) holds a token once that several sequences have. Loads and losses
count it for each of them.

Legend: S sequences of the pack without padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from archon_core.contracts.packed import PackedSequences, SharedPrefixes, cut_ranges
from archon_engine import compat
from archon_engine.nn.tensor_parallel import TensorParallel


@dataclass(frozen=True)
class LocalTokens:
    """The tokens that this rank holds between the regions of tensor parallelism.

    Attributes:
        packed: the pack, as this context rank sees it.
        parallel: the tensor ranks; ``None`` without tensor parallelism.
        n_real: how many of this rank's tokens precede the padding. Padding ends the pack, and a rank holds its tokens
            in their order, so padding ends each rank's part.
        places: their places in the whole pack, as ascending ranges.
    """

    packed: PackedSequences
    parallel: TensorParallel | None
    n_real: int
    places: tuple[range, ...]

    @classmethod
    def of(cls, packed: PackedSequences, parallel: TensorParallel | None, n_tokens: int) -> LocalTokens:
        """The tokens of a rank that holds ``n_tokens`` rows, padding included."""
        ranges = packed.local_ranges(parallel)
        assert sum(map(len, ranges)) == n_tokens, "a rank holds as many rows as it has places in the pack"
        end = sum(packed.lengths) - packed.n_padding
        n_real = sum(max(0, min(part.stop, end) - part.start) for part in ranges)
        return cls(packed, parallel, n_real, cut_ranges(ranges, 0, n_real))

    @property
    def n_sequences(self) -> int:
        """S: the padding counts as a sequence of the pack, but not here."""
        if self.packed.shared is not None:
            return self.packed.shared.n_sequences
        return len(self.packed.lengths) - (self.packed.n_padding > 0)

    def of_sequences(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The rows of every value [n_real, ...] once for each sequence that has the token: [n, ...]. Backward sums."""
        shared = self.packed.shared
        if shared is None:
            return values
        # Found once for all values: on a GPU, the host waits for the number of rows.
        rows_N = self._rows(shared)
        rows = rows_N[rows_N >= 0]
        return tuple(x.index_select(0, rows) for x in values)

    def sequence_of(self) -> Tensor:
        """int64 [n], for each row of ``of_sequences`` the index of its sequence in the pack."""
        if self.packed.shared is not None:
            return self.packed.shared.sequence_of[self._rows(self.packed.shared) >= 0]
        places = self.packed.local_places(self.parallel)[: self.n_real]
        ends = self.packed.cu_seqlens[1:].to(places.dtype)
        return torch.searchsorted(ends, places, right=True)

    def sum_over_sequence_shards(self, x: Tensor) -> Tensor:
        """Sum ``x`` over the tensor and context ranks that share these sequences. Collective; has no gradient."""
        for group in self._groups():
            x = compat.all_reduce(x, group)
        return x

    def local_rows(self, x: Tensor) -> Tensor:
        """The rows of this rank's real tokens in ``x`` [tokens of this context rank, ...]."""
        first = 0
        if self.parallel is not None and self.parallel.sequence_sharded:
            first = self.parallel.rank * (x.shape[0] // self.parallel.size)
        return x[first : first + self.n_real]

    def _rows(self, shared: SharedPrefixes) -> Tensor:
        """int64, for every token of the sequences the row here that stands for it; -1 if none does."""
        rows, first = torch.full_like(shared.token_of, -1), 0
        for part in self.places:
            is_here = (shared.token_of >= part.start) & (shared.token_of < part.stop)
            rows = torch.where(is_here, shared.token_of - part.start + first, rows)
            first += len(part)
        return rows

    def _groups(self) -> list[Any]:
        tensor = self.parallel if self.parallel is not None and self.parallel.sequence_sharded else None
        return [part.group for part in (tensor, self.packed.context) if part is not None]
