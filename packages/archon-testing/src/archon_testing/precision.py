"""The step in bfloat16: whether gradients were summed in a wider type.

A bfloat16 number has 8 significant bits. The sum of two of them rarely has so few: among the sums of gradients of
several ranks, or micro-batches, about one in three is a bfloat16 number by chance. Where all of them are, they were
summed in bfloat16, or rounded to it afterwards. No other run and no tolerance is needed to see that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from archon_testing.held_shards import HeldShard

ENOUGH = 100
"""Elements of which not all can be bfloat16 numbers by chance."""
MOST_BY_CHANCE = 0.95
"""Share of bfloat16 numbers above which sums count as rounded. Sums that one rank alone contributes to are such
numbers, too: those of an embedding's rows, so that only layers are counted."""


def rounded_sums(gradients: Mapping[str, HeldShard], *, dense: bool, experts: bool, vectors: bool) -> Iterator[str]:
    """Sentences about gradients of layers that were rounded to bfloat16.

    Args:
        gradients: parameter -> this rank's piece of what all ranks and micro-batches together gave, before clipping.
        dense: whether matrices are sums of several gradients.
        experts: whether stacked matrices are.
        vectors: whether weights of norms are. Biases are left out: of those that are summed over tensor ranks, one
            rank alone adds to the sum.
    """
    layers = {name: piece for name, piece in gradients.items() if name.startswith("layers.")}
    layers = {name: piece for name, piece in layers.items() if not name.endswith(".bias")}
    for n_dims, is_sum, what in ((1, vectors, "norms"), (2, dense, "matrices"), (3, experts, "experts")):
        pieces = [piece.values for piece in layers.values() if piece.values.ndim == n_dims]
        values = torch.cat([p.flatten() for p in pieces]) if pieces else torch.empty(0)
        values = values[values != 0]
        if not is_sum or len(values) < ENOUGH:
            continue
        share = float((values.to(torch.bfloat16).to(values.dtype) == values).double().mean())
        if share > MOST_BY_CHANCE:
            yield f"gradients of layers' {what} are summed in bfloat16: {share:.0%} of the sums are bfloat16 numbers"
