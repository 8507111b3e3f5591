"""The parts of packed sequences that one rank holds: pure arithmetic on the host.

A recurrent layer reads tokens in order, so it needs to know where sequences begin and which of them began on an earlier
rank. Context ranks cut a pack into equal parts, wherever sequences end.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from archon_core.contracts.packed import PackedSequences


@dataclass(frozen=True)
class Segments:
    """Segments of this rank's tokens, end to end, each of another sequence.

    Attributes:
        lengths: their lengths in tokens.
        first_offset: tokens of the first segment's sequence that earlier context ranks hold.
    """

    lengths: tuple[int, ...]
    first_offset: int = 0

    @classmethod
    def of(cls, packed: PackedSequences) -> Segments:
        """The segments of the tokens of ``packed.positions``."""
        if packed.context is None:
            return cls(packed.lengths)
        n_own = packed.positions.shape[0]
        return cls.within(packed.lengths, packed.context.rank * n_own, n_own)

    @classmethod
    def within(cls, lengths: tuple[int, ...], start: int, n_tokens: int) -> Segments:
        """The segments among ``n_tokens`` tokens from place ``start`` of a pack of sequences of ``lengths``."""
        stop, kept, offset = start + n_tokens, [], 0
        for end, length in zip(accumulate(lengths), lengths, strict=True):
            own = min(end, stop) - max(end - length, start)
            if own > 0:
                if not kept:
                    offset = max(0, start - (end - length))
                kept.append(own)
        return cls(tuple(kept), offset)

    @property
    def spans_all(self) -> bool:
        """Whether all tokens of this rank belong to one sequence that began on an earlier rank."""
        return len(self.lengths) == 1 and self.first_offset > 0
