"""The micro-batches that a search tries for a batch, split and padded as the engine does
(``archon_engine.step.splitting``, ``archon_engine.running``).

The engine keeps ``mb_spec.granularity`` consecutive sequences together; here they are a group. Sequences have the mean
length, so all groups are alike.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

from archon_core.layout.dims import ParallelDims
from archon_plan.setting import Setting


class MicroBatches:
    """The micro-batches of one batch in any layout.

    Args:
        base: what all layouts share: the model, the length of a sequence, and how micro-batches are padded.
        sequences: of one optimizer step, on all ranks together.
        granularity: sequences of a group.
        divisor: the engine plans a multiple of this many micro-batches (``mb_spec.n_mbs_divisor``).
    """

    def __init__(self, base: Setting, sequences: int, *, granularity: int = 1, divisor: int = 1) -> None:
        self._base, self._divisor = base, divisor
        self._groups = -(-sequences // granularity)
        self._of_group = granularity * base.tokens.sequence
        self._multiples: dict[tuple[int, int, bool], int] = {}

    def groups_of(self, dims: ParallelDims) -> int:
        """The groups of the data rank that has most."""
        return -(-self._groups // (dims.dp_replicate * dims.dp_shard))

    def numbers(self, groups: int, n_stages: int, multiple: int) -> tuple[int, ...]:
        """See ``micro_batch_numbers``."""
        return micro_batch_numbers(groups, n_stages, multiple, self._divisor)

    def tokens(self, groups: int) -> int:
        """Tokens of so many groups, without padding."""
        return groups * self._of_group

    def padded_tokens(self, dims: ParallelDims, groups: int) -> int:
        """Tokens of a micro-batch of so many groups, with padding."""
        return _round_up(self.tokens(groups), self._multiple(dims))

    def keeps_alignment(self, dims: ParallelDims) -> bool:
        """Whether the engine pads as ``batch_align_to`` says: where it has to pad further, that is a decision, which
        ``archon.strict`` refuses."""
        return self._base.aligned_to in (1, self._multiple(dims))

    def _multiple(self, dims: ParallelDims) -> int:
        """See ``Setting.token_multiple``. Most layouts of a search share theirs."""
        key = dims.tp, dims.cp, dims.world_size > (self._base.ranks_per_node or dims.world_size)
        if key not in self._multiples:
            self._multiples[key] = replace(self._base, dims=dims).token_multiple
        return self._multiples[key]


@lru_cache(maxsize=4096)
def micro_batch_numbers(groups: int, n_stages: int, multiple: int, divisor: int = 1) -> tuple[int, ...]:
    """Numbers of micro-batches to try, in increasing order, for the groups of one data rank.

    Powers of two and the number of groups itself. A pipeline runs at least as many as it has stages. The engine plans a
    multiple of ``divisor``, and runs empty ones only where a pipeline needs them.

    Args:
        groups: of sequences that stay together, of one data rank; at least 1.
        n_stages: of the pipeline; 1 without.
        multiple: a pipeline runs a multiple of this; 1 without.
        divisor: planned numbers are a multiple of it, too.
    """
    wanted = {1 << exponent for exponent in range(groups.bit_length()) if 1 << exponent <= groups} | {groups}
    planned = {_round_up(max(number, n_stages), math.lcm(multiple, divisor)) for number in wanted}
    return tuple(sorted({_round_up(max(min(number, groups), n_stages), multiple) for number in planned}))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
