"""Copies that FSDP2 makes of weights and gradients around its collectives.

In torch 2.11 to 2.13 (``torch/distributed/fsdp/_fully_shard``) a gather packs the shards of a group into one buffer and
unpacks the result into the weights. A reduction packs gradients into the input of the reduce-scatter, and adds its
result to the sharded gradients. A group of one rank sends nothing, but its weights and gradients are copied all the
same. A pipeline adds the gradients of a micro-batch to those of the ones before it, unsharded.
"""

from __future__ import annotations

from dataclasses import dataclass

from archon_plan.setting import Setting
from archon_plan.shards import Shards


@dataclass(frozen=True)
class Copies:
    """Bytes read and written for one group of weights and one micro-batch.

    Attributes:
        gather: around the gather of the weights.
        reduce: around the reduction of the gradients.
        accumulate: of adding unsharded gradients to those of earlier micro-batches.
    """

    gather: float = 0.0
    reduce: float = 0.0
    accumulate: float = 0.0

    def __add__(self, other: Copies) -> Copies:
        return Copies(self.gather + other.gather, self.reduce + other.reduce, self.accumulate + other.accumulate)


NO_COPIES = Copies()


def copies(setting: Setting, group: Shards, ranks: int) -> Copies:
    """The copies of a group of weights that ``ranks`` data ranks share."""
    if not setting.is_sharded or not group.tensors:
        return NO_COPIES
    compute, master, reduce = setting.types.compute, setting.types.master, setting.types.reduce
    several = setting.tokens.n_micro_batches > 1
    staged = setting.dims.pp > 1
    # Each shard is read in its own type and written in that of the computation.
    gather = group.stored * (master + compute)
    packed = group.gathered * (compute + reduce)
    if ranks > 1:
        gather += 2 * (group.gathered + group.rearranged) * compute
    else:
        # Divided by the number of ranks into a new buffer, then copied.
        packed += 4 * group.gathered * reduce
    added = several and (not staged or setting.reduces_each)
    return Copies(
        gather=gather,
        reduce=packed + (3 * group.stored * master if added else 0),
        accumulate=group.whole * (compute + 2 * reduce) if several and staged and not setting.reduces_each else 0,
    )
