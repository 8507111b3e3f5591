"""What the ranks tell one another about a batch before its first forward pass.

Each knows its own sequences only. How many micro-batches all run, and by what losses are divided, must be the same
everywhere: a rank with fewer sequences joins in with padding, or the others would wait for it for ever.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from archon_core.data.batch import Batch
from archon_core.distributed.ranks import DataRanks
from archon_core.errors import DataError
from archon_core.protocols import Loss, Unit


@dataclass(frozen=True)
class Share:
    """One data rank's part of a batch.

    Attributes:
        n_sequences: sequences in it.
        n_tokens: their tokens.
        n_micro_batches: micro-batches that it was split into.
        weights: what the loss counts in it.
        fingerprint: the same on ranks that were given the same sequences.
    """

    n_sequences: int
    n_tokens: int
    n_micro_batches: int
    weights: Mapping[Unit, float] = field(default_factory=dict)
    fingerprint: int = 0

    @classmethod
    def of(cls, batch: Batch, n_micro_batches: int, loss: Loss | None = None) -> Share:
        """Describe ``batch``; an empty one weighs nothing, whatever the loss."""
        weights = loss.weights(batch) if loss is not None and len(batch) else {}
        content = batch.input_ids.cpu().numpy().tobytes() + repr(batch.lengths).encode()
        return cls(
            n_sequences=len(batch),
            n_tokens=batch.n_tokens,
            n_micro_batches=n_micro_batches,
            weights={unit: float(weight) for unit, weight in weights.items()},
            fingerprint=zlib.crc32(content),
        )


def agree(share: Share, ranks: DataRanks) -> Share:
    """The whole batch: sums over all shares, and the largest number of micro-batches.

    Raises:
        DataError: there is no sequence at all, or ranks of one data rank were given different ones.
    """
    answers = ranks.everyone.gather((ranks.rank, share))
    shares: dict[int, Share] = {}
    for data_rank, answer in answers:
        if shares.setdefault(data_rank, answer) != answer:
            raise DataError(
                f"batch: found different sequences on processes of data rank {data_rank}; processes with the same "
                "data_ranks.rank must be given equal batches"
            )
    whole = [shares[data_rank] for data_rank in sorted(shares)]
    if not any(part.n_sequences for part in whole):
        raise DataError("batch: found no sequence on any data rank; at least one rank must have one")
    weights: dict[Unit, float] = {}
    for part in whole:
        for unit, weight in part.weights.items():
            weights[unit] = weights.get(unit, 0.0) + weight
    return Share(
        n_sequences=sum(part.n_sequences for part in whole),
        n_tokens=sum(part.n_tokens for part in whole),
        n_micro_batches=max(part.n_micro_batches for part in whole),
        weights=weights,
    )
