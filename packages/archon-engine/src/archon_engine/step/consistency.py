"""Agreement of all ranks on a batch before its first forward pass.

Each rank knows its own sequences. The number of micro-batches and the divisors of losses must be the same everywhere:
collectives run inside forward passes, so a rank with fewer sequences adds micro-batches of padding, or the others would
wait for it for ever.
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
        n_sequences: sequences in it.
        n_tokens: their tokens.
        n_micro_batches: micro-batches that it was split into.
        weights: unit -> how much of it the loss counts here, such as tokens with a target.
        fingerprint: checksum of the sequences, equal on ranks with equal ones.
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
        return cls(
            n_sequences=len(batch),
            n_tokens=batch.n_tokens,
            n_micro_batches=n_micro_batches,
            weights={unit: float(weight) for unit, weight in weights.items()},
            fingerprint=_fingerprint(batch),
        )


def agree(share: Share | Exception, ranks: DataRanks) -> Share:
    """The whole batch: sums over all shares, and the largest number of micro-batches. Collective.

    Args:
        share: this rank's, or why there is none.
        ranks: who has the others.

    Raises:
        DataError: there is no sequence at all, or ranks of one data rank were given different ones.
        Exception: some rank has no share; as ``raise_on_every_rank`` does.
    """
    own = share if isinstance(share, Exception) else None
    answers = ranks.everyone.gather((ranks.rank, share if own is None else Failure.of(own)))
    raise_on_every_rank(own, [answer if isinstance(answer, Failure) else None for _, answer in answers])
    shares: dict[int, Share] = {}
    for data_rank, answer in answers:
        # By their text: a weight that is not a number equals nothing, and is reported as one later.
        if repr(shares.setdefault(data_rank, answer)) != repr(answer):
            raise DataError(
                f"batch: found different sequences on processes of data rank {data_rank}; processes with the same "
                "data_ranks.rank must be given equal batches, fields included"
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


def _fingerprint(batch: Batch) -> int:
    """A checksum of tokens, lengths and fields: losses that see other fields would pull tensor ranks apart."""
    checksum = zlib.crc32(repr(batch.lengths).encode())
    fields = {"input_ids": batch.input_ids, **batch.token_fields, **batch.sequence_fields}
    for name in sorted(fields):
        checksum = zlib.crc32(name.encode() + _bytes(fields[name]), checksum)
    return checksum


def _bytes(values: Tensor) -> bytes:
    # numpy has no bfloat16.
    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
