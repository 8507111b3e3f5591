"""What a plan answers. All memory in bytes, all times in seconds, all of one rank unless it says otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Axis = Literal["pp", "dp_replicate", "fsdp", "cp", "cp_heads", "cp_keys", "tp", "edp", "ep", "etp", "stage"]
"""The group of a collective. ``fsdp`` is dp_shard x cp, over which dense parameters are sharded; ``edp`` that of
experts; ``ep`` of tokens on their way to experts is ep x etp; ``stage`` is all ranks of a pipeline rank. Of context
ranks, ``cp_heads`` are neighbours that exchange heads, and ``cp_keys`` gather keys and values, one of each such
group."""

Collective = Literal["all_gather", "reduce_scatter", "all_reduce", "all_to_all", "send", "broadcast"]


@dataclass(frozen=True)
class MemoryPart:
    """One line of a rank's memory.

    Attributes:
        name: what it is, such as ``optimizer``.
        bytes: at the peak.
        note: what it consists of, in a few words; empty if the name says all.
    """

    name: str
    bytes: float
    note: str = ""


@dataclass(frozen=True)
class RankMemory:
    """Memory of the ranks of one pipeline rank, which differ only by uneven shards: the largest is meant.

    Attributes:
        pipeline_rank: which.
        parts: at the peak; they add up to it.
    """

    pipeline_rank: int
    parts: tuple[MemoryPart, ...]

    @property
    def total(self) -> float:
        """The peak."""
        return sum(part.bytes for part in self.parts)


@dataclass(frozen=True)
class Transfer:
    """What one rank sends in one optimizer step for one purpose.

    Attributes:
        axis: the group of ranks.
        size: ranks in the group.
        collective: the operation.
        purpose: such as ``weights``, ``gradients``, ``sequence shards``, ``heads``, ``tokens to experts``.
        calls: number of operations per step.
        bytes: that this rank sends to others in one step, all calls together. For ring algorithms: (n - 1) / n of the
            whole buffer for all_gather, reduce_scatter and all_to_all, twice that for all_reduce; the buffer for a
            broadcast, on the rank that has it. Where ranks of a group send different amounts, the most that one sends.
        overlaps: whether it runs beside computation.
        pipeline_rank: rank of the pipeline whose ranks send it.
    """

    axis: Axis
    size: int
    collective: Collective
    purpose: str
    calls: float
    bytes: float
    overlaps: bool
    pipeline_rank: int = 0


@dataclass(frozen=True)
class StepTime:
    """One optimizer step.

    Attributes:
        total: from the first forward pass to the end of the optimizer step.
        parts: name -> seconds of the busiest pipeline rank, such as ``dense products``, ``attention``, ``recompute``,
            ``waiting for tensor ranks``, ``bubble``, ``optimizer``. They add up to ``total``.
        bubble: idle over busy time of the pipeline, as ``archon pipeline`` defines it.
        flops: multiplications and additions of one step on all ranks, recomputation left out.
        mfu: ``flops`` over what all devices could do in ``total``.
        tokens_per_second: of all ranks together.
        limit: what limits the step, as one phrase.
    """

    total: float
    parts: dict[str, float] = field(default_factory=dict)
    bubble: float = 0.0
    flops: float = 0.0
    mfu: float = 0.0
    tokens_per_second: float = 0.0
    limit: str = ""
