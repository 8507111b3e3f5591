"""Makes all ranks agree on a batch before its first forward pass.

Each rank knows only its own sequences, but the number of micro-batches and the divisors of losses must be equal on all.
Collectives run inside forward passes, so a rank with fewer sequences adds micro-batches of padding; otherwise the
others would wait for it forever.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import Loss, Unit
from archon_core.errors import DataError
from archon_core.ranks.failing_together import Failure, raise_on_every_rank
from archon_core.ranks.ranks import DataRanks


@dataclass(frozen=True)
class Share:
    """One data rank's part of a batch.

    Attributes:
        n_sequences: number of sequences.
        n_tokens: number of tokens.
        n_micro_batches: number of micro-batches into which it was split.
        weights: unit -> weight of this part in the loss, such as the number of tokens with a target.
        fingerprint: checksum of the sequences and fields, to compare ranks that must hold equal ones.
    """

    n_sequences: int
    n_tokens: int
    n_micro_batches: int
    weights: Mapping[Unit, float] = field(default_factory=dict)
    fingerprint: int = 0

    @classmethod
    def of(cls, batch: Batch, n_micro_batches: int, loss: Loss | None = None) -> Share:
        """Describe ``batch``. An empty batch has no weights, whatever the loss."""
        weights = loss.weights(batch) if loss is not None and len(batch) else {}
        return cls(
            n_sequences=len(batch),
            n_tokens=batch.n_tokens,
            n_micro_batches=n_micro_batches,
            weights={unit: float(weight) for unit, weight in weights.items()},
            fingerprint=_fingerprint(batch),
        )


def agree(share: Share | Exception, ranks: DataRanks) -> Share:
    """Combine the shares of all data ranks: sums, and the largest number of micro-batches. Collective.

    Args:
        share: this rank's share, or the error that prevented it.
        ranks: the data ranks.

    Raises:
        DataError: the batch has no sequence, or processes of one data rank hold different sequences.
        Exception: a rank passed an error; see ``raise_on_every_rank``.
    """
    own = share if isinstance(share, Exception) else None
    answers = ranks.everyone.gather((ranks.rank, share if own is None else Failure.of(own)))
    raise_on_every_rank(own, [answer if isinstance(answer, Failure) else None for _, answer in answers])
    shares: dict[int, Share] = {}
    for data_rank, answer in answers:
        # Compared as text, because a NaN weight equals nothing; LossTotals reports it later.
        if repr(shares.setdefault(data_rank, answer)) != repr(answer):
            raise DataError(
                f"batch: found different sequences on processes of data rank {data_rank}; processes with the same "
                "data_ranks.rank must pass equal batches, including fields"
            )
    whole = [shares[data_rank] for data_rank in sorted(shares)]
    if not any(part.n_sequences for part in whole):
        raise DataError("batch: found no sequence on any data rank; pass at least one on some rank")
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


def _fingerprint(batch: Batch) -> int:
    """A checksum of tokens, lengths and fields: with different fields, the replicas on tensor ranks would diverge."""
    checksum = zlib.crc32(repr(batch.lengths).encode())
    fields = {"input_ids": batch.input_ids, **batch.token_fields, **batch.sequence_fields}
    for name in sorted(fields):
        checksum = zlib.crc32(name.encode() + _bytes(fields[name]), checksum)
    return checksum


def _bytes(values: Tensor) -> bytes:
    # numpy has no bfloat16.
    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
