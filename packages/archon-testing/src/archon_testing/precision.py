"""The check of the bfloat16 step: gradients must be summed in a wider dtype.

A bfloat16 number has 8 significant bits, and a sum of two such numbers rarely fits into 8 bits: among gradients summed
over ranks or micro-batches, about one in three is representable in bfloat16 by chance. If nearly all are, they were
summed in bfloat16 or rounded to it afterwards. This needs neither a reference nor a tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.distributed as dist

from archon_testing.held_shards import HeldShard

ENOUGH = 100
"""Least number of elements for a significant result."""
MOST_BY_CHANCE = 0.95
"""Share of bfloat16 numbers above which sums count as rounded. Only layers count: a row of an embedding often gets its
gradient from one rank alone, which is no sum."""


def least_of_ranks(share: float) -> float:
    """The least ``share`` of all ranks. Collective."""
    if not dist.is_initialized():
        return share
    least = torch.tensor(share, dtype=torch.float64)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return float(least)


def rounded_sums(
    gradients: Mapping[str, HeldShard],
    *,
    dense: bool,
    experts: bool,
    vectors: bool,
    least: Callable[[float], float] = least_of_ranks,
) -> Iterator[str]:
    """Remarks about gradients of layers that were rounded to bfloat16.

    Args:
        gradients: parameter -> this rank's shard of the total gradient, before clipping.
        dense: whether matrices are sums of several gradients.
        experts: whether stacked matrices are.
        vectors: whether weights of norms are. The check skips biases: only one tensor rank contributes to some of them.
        least: the least share of all ranks. Experts count as rounded only if they are on every rank: the few experts of
            one rank may have got all tokens from a single rank, whose gradient is no sum.
    """
    layers = {name: shard for name, shard in gradients.items() if name.startswith("layers.")}
    layers = {name: shard for name, shard in layers.items() if not name.endswith(".bias")}
    for n_dims, is_sum, what in ((1, vectors, "norms"), (2, dense, "matrices"), (3, experts, "experts")):
        shards = [shard.values for shard in layers.values() if shard.values.ndim == n_dims]
        values = torch.cat([p.flatten() for p in shards]) if shards else torch.empty(0)
        values = values[values != 0]
        if not is_sum:
            continue
        is_enough = len(values) >= ENOUGH
        share = float((values.to(torch.bfloat16).to(values.dtype) == values).double().mean()) if is_enough else 1.0
        if what == "experts":
            share = least(share)
        if is_enough and share > MOST_BY_CHANCE:
            yield f"gradients of layers' {what} are summed in bfloat16: {share:.0%} of the sums are bfloat16 numbers"
