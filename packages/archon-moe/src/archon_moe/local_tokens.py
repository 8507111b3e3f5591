"""Which of a pack's tokens a rank's block sees, and whose sequences they are of.

Legend: T tokens of this rank, S sequences of the pack without padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from archon_core.contracts.packed import PackedSequences
from archon_engine import compat
from archon_engine.nn.tensor_parallel import TensorParallel


@dataclass(frozen=True)
class LocalTokens:
    """The tokens that this rank holds between regions.

    Attributes:
        packed: where the sequences lie.
        parallel: the tensor ranks over which tokens are cut; ``None`` for none.
        n_real: those before the padding, which is the end of the pack and so of every rank's part of it.
    """

    packed: PackedSequences
    parallel: TensorParallel | None
    n_real: int

    @classmethod
    def of(cls, packed: PackedSequences, parallel: TensorParallel | None, n_tokens: int) -> LocalTokens:
        """Those of a rank that holds ``n_tokens``."""
        first = packed.first_local_place(parallel, n_tokens)
        n_real = sum(packed.lengths) - packed.n_padding - first
        return cls(packed, parallel, max(0, min(n_real, n_tokens)))

    @property
    def n_sequences(self) -> int:
        """S."""
        return len(self.packed.lengths) - (self.packed.n_padding > 0)

    def sequence_of(self) -> Tensor:
        """int64 [n_real], the number of each real token's sequence."""
        places = self.packed.local_places(self.parallel)[: self.n_real]
        ends = self.packed.cu_seqlens[1:].to(places.dtype)
        return torch.searchsorted(ends, places, right=True)

    def sum_over_sharers(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over the ranks that hold tokens of the same sequences, without gradients."""
        for group in self._groups():
            x = compat.all_reduce(x, group)
        return x

    def own_rows(self, x: Tensor) -> Tensor:
        """Those of the real tokens, of ``x`` [tokens of ``packed.positions``, ...]."""
        first = 0
        if self.parallel is not None and self.parallel.sequence_sharded:
            first = self.parallel.rank * (x.shape[0] // self.parallel.size)
        return x[first : first + self.n_real]

    def _groups(self) -> list[Any]:
        tensor = self.parallel if self.parallel is not None and self.parallel.sequence_sharded else None
        return [part.group for part in (tensor, self.packed.context) if part is not None]
