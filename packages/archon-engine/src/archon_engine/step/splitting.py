"""Splits a rank's part of a batch into micro-batches: planned from lengths, filled up to the number that all ranks run.

The plan is pure; only ``Splitter.build`` touches tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from archon_core.contracts.batch import Batch, MicroBatch
from archon_core.contracts.engine_config import MicroBatchSpec
from archon_core.contracts.loss import OutputRequest
from archon_engine.data.micro_batch import build_micro_batch
from archon_engine.data.packing import plan_micro_batches
from archon_engine.nn.ulysses import ContextParallel


@dataclass(frozen=True)
class PipelineNeeds:
    """Constraints of a pipeline on the number of micro-batches.

    Attributes:
        at_least: minimum; with fewer, stages would never all work at once.
        divisor: the number must be a multiple of this.
    """

    at_least: int
    divisor: int = 1

    def number_for(self, planned: int) -> int:
        """The smallest number that is at least ``planned`` and satisfies both constraints."""
        return math.ceil(max(planned, self.at_least) / self.divisor) * self.divisor


@dataclass(frozen=True)
class Splitter:
    """Splits batches into micro-batches for one engine.

    Attributes:
        spec: the options ``mb_spec``.
        multiple: micro-batches are padded to a multiple of this many tokens.
        at_least: micro-batches are padded to at least this many tokens.
        context: the context ranks, among which tokens are divided; ``None`` without context parallelism.
        pipeline: constraints of the pipeline; ``None`` without one.
        replays_routing: route tokens to the experts recorded in the batch, if any.
        option: dotted name of the options, for messages.
    """

    spec: MicroBatchSpec
    multiple: int = 1
    at_least: int = 0
    context: ContextParallel | None = None
    pipeline: PipelineNeeds | None = None
    replays_routing: bool = False
    option: str = "mb_spec"

    def plan(self, batch: Batch) -> list[Sequence[int]]:
        """Assign the sequences of ``batch`` to micro-batches, none of them empty.

        Raises:
            DataError: the batch does not fit the options.
        """
        if not len(batch):
            return []
        plan = plan_micro_batches(
            batch.lengths,
            n_mbs=max(self.spec.n_mbs, self.pipeline.at_least if self.pipeline else 1),
            max_tokens_per_mb=self.spec.max_tokens_per_mb,
            granularity=self.spec.granularity,
            n_mbs_divisor=math.lcm(self.spec.n_mbs_divisor, self.pipeline.divisor if self.pipeline else 1),
            algorithm=self.spec.packing_algorithm,
            option=self.option,
        )
        return [indices for indices in plan if indices]

    def number_for(self, planned: int) -> int:
        """The number of micro-batches that all ranks run, given the largest number that a rank has planned."""
        return planned if self.pipeline is None else self.pipeline.number_for(planned)

    def build(
        self, batch: Batch, plan: Sequence[Sequence[int]], request: OutputRequest, number: int
    ) -> list[MicroBatch]:
        """Build the micro-batches of ``plan``, and micro-batches of padding up to ``number``, which this rank runs
        while others still have sequences. In a pipeline, all micro-batches of a step have the same length."""
        at_least = self.at_least
        if self.pipeline is not None:
            at_least = max(at_least, *(sum(batch.lengths[i] for i in indices) for indices in plan), 0)
        return [
            build_micro_batch(
                batch,
                indices,
                request,
                multiple=self.multiple,
                at_least=at_least,
                context=self.context,
                replays_routing=self.replays_routing,
            )
            for indices in [*plan, *([()] * (number - len(plan)))]
        ]
