"""The batches of the oracle: ragged, different at every step, and unevenly distributed over data ranks.

They provoke typical multi-rank bugs: sequences of one token, which have no targets; one very long sequence; ranks
without sequences, and ranks without targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.seeding import derive_seed

STEP_LENGTHS: tuple[tuple[int, ...], ...] = (
    (1, 7, 4, 1, 131, 9, 2, 12, 6, 3, 1),
    (23,),
    (3, 31, 1, 8, 15, 1, 40),
)
"""Tokens per sequence, for each optimizer step. The second step has fewer sequences than data ranks. The longest
sequence exceeds 64 and 128 tokens, typical sizes of kernel tiles and context shards."""

TREE_STEP_LENGTHS: tuple[tuple[int, ...], ...] = (
    (1, 17, 14, 1, 131, 29, 2, 52, 36, 13, 21),
    (23,),
    (3, 31, 1, 8, 15, 1, 40),
)
"""The same for sequences that share prefixes."""

STEPS: Mapping[str, int] = {"float64": 3, "float32": 2}
"""Optimizer steps of a run. In float32, Adam amplifies rounding differences, so a third step would show little."""

MASK = "mask"
"""Token field [T]: 1 for predictions that count in the loss, else 0."""
PULL = "pull"
"""Token field [T], positive: weight of a token, or target value of a critic."""
SCALE = "scale"
"""Sequence field [S], positive."""


SHARED = (0.9, 0.5, 1.0, 0.7)
"""The parts of sequences that are others' prefixes, in turn."""

MONOTONOUS = 1
"""The step whose batch has only two distinct tokens, so that most experts of a model get none."""


def make_batch(
    step: int,
    *,
    vocab_size: int,
    longest: int,
    dtype: torch.dtype,
    seed: int,
    experts: bool = False,
    lengths: Sequence[Sequence[int]] = STEP_LENGTHS,
) -> Batch:
    """The whole batch of optimizer step ``step``, counted from 0.

    Args:
        step: the step.
        vocab_size: ids are below it.
        longest: sequences are cut to this many tokens.
        dtype: of the fields.
        seed: of the case.
        experts: whether the model has experts.
        lengths: tokens per sequence, for each step.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "verify batch", step))
    of_step = [min(length, longest) for length in lengths[step]]

    def positive(n: int) -> Tensor:
        return (0.5 + torch.rand(n, dtype=torch.float64, generator=generator)).to(dtype)

    def mask(n: int) -> Tensor:
        counted = torch.rand(n, generator=generator) < 0.8
        counted[0], counted[-1] = True, False
        return counted.to(dtype)

    of_few = min(2, vocab_size) if experts and step == MONOTONOUS else vocab_size
    return Batch.from_sequences(
        [torch.randint(0, of_few, (n,), generator=generator) for n in of_step],
        {MASK: [mask(n) for n in of_step], PULL: [positive(n) for n in of_step]},
        {SCALE: positive(len(of_step))},
    )


def make_tree_batch(step: int, *, seed: int, **options: Any) -> Batch:
    """The whole batch of step ``step``, whose sequences continue one another's prefixes: from some token on, at their
    ends, or not at all, as copies. Fields differ between copies.

    Args:
        step: the step.
        seed: of the case.
        options: as of ``make_batch``.
    """
    batch = make_batch(step, seed=seed, lengths=TREE_STEP_LENGTHS, **options)
    generator = torch.Generator().manual_seed(derive_seed(seed, "verify prefixes", step))
    rows = list(batch.input_ids.split(batch.lengths))
    # Longest first, so that shorter sequences find prefixes to continue; the first two share nothing.
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    for place, i in enumerate(order):
        if place < 2:
            continue
        source = rows[order[int(torch.randint(0, place, (), generator=generator))]]
        shared = int(len(rows[i]) * SHARED[place % len(SHARED)])
        rows[i] = torch.cat((source[:shared], rows[i][shared:]))
    return replace(batch, input_ids=torch.cat(rows))


def deal_unevenly(n_sequences: int, n_ranks: int) -> list[list[int]]:
    """The sequences of each data rank: every other one of the remaining sequences; the last rank takes the rest.

    Shares are very uneven, later ranks may be empty, and no rank has adjacent sequences.
    """
    left = list(range(n_sequences))
    shares = []
    for _ in range(n_ranks - 1):
        shares.append(left[0::2])
        left = left[1::2]
    return [*shares, left]


def token_places(batch: Batch, indices: Sequence[int]) -> Tensor:
    """Positions in the packed ``batch`` of the tokens of sequences ``indices``, in that order; int64."""
    spans = [torch.arange(batch.offsets[i], batch.offsets[i + 1]) for i in indices]
    return torch.cat([torch.empty(0, dtype=torch.int64), *spans])
