"""The batches of the oracle: ragged, different at every step, and unevenly dealt over data ranks.

They aim at what goes wrong with many ranks: sequences of one token, which predict nothing; one that is longer than all
others; ranks without any sequence, and with none that predicts something.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
sequence passes 64 and 128 tokens, around which tiles of kernels and parts of context ranks end."""

STEPS: Mapping[str, int] = {"float64": 3, "float32": 2}
"""Optimizer steps of a run. In float32 Adam pulls two runs apart, so a third step would show little."""

MASK = "mask"
"""Token field [T]: 1 for predictions that the loss counts, 0 for others."""
PULL = "pull"
"""Token field [T], positive: how much a token counts, or where a critic's value should be."""
SCALE = "scale"
"""Sequence field [S], positive."""


MONOTONOUS = 1
"""Number of a step whose batch has two different tokens only, for models with experts: most of them get none."""


def make_batch(
    step: int, *, vocab_size: int, longest: int, dtype: torch.dtype, seed: int, experts: bool = False
) -> Batch:
    """The whole batch of optimizer step number ``step``, the first being 0.

    Args:
        step: which one.
        vocab_size: ids are below it.
        longest: sequences are cut to this many tokens.
        dtype: of the fields.
        seed: of the case.
        experts: whether the model has experts.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "verify batch", step))
    lengths = [min(length, longest) for length in STEP_LENGTHS[step]]

    def positive(n: int) -> Tensor:
        return (0.5 + torch.rand(n, dtype=torch.float64, generator=generator)).to(dtype)

    def mask(n: int) -> Tensor:
        counted = torch.rand(n, generator=generator) < 0.8
        counted[0], counted[-1] = True, False
        return counted.to(dtype)

    of_few = min(2, vocab_size) if experts and step == MONOTONOUS else vocab_size
    return Batch.from_sequences(
        [torch.randint(0, of_few, (n,), generator=generator) for n in lengths],
        {MASK: [mask(n) for n in lengths], PULL: [positive(n) for n in lengths]},
        {SCALE: positive(len(lengths))},
    )


def deal(n_sequences: int, n_ranks: int) -> list[list[int]]:
    """Which sequences each data rank gets: half of what is left, every other one of it; the last takes the rest.

    So shares are as uneven as they can sensibly be, later ranks may have none, and no rank's sequences are neighbours.
    """
    left = list(range(n_sequences))
    shares = []
    for _ in range(n_ranks - 1):
        shares.append(left[0::2])
        left = left[1::2]
    return [*shares, left]


def token_places(batch: Batch, indices: Sequence[int]) -> Tensor:
    """int64: the tokens of sequences number ``indices``, in that order, as places in the packed ``batch``."""
    spans = [torch.arange(batch.offsets[i], batch.offsets[i + 1]) for i in indices]
    return torch.cat([torch.empty(0, dtype=torch.int64), *spans])
