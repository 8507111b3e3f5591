"""How a rank's part of a batch becomes micro-batches: planned from lengths, filled up to the number that all ranks run.

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
    """What a pipeline asks of the number of micro-batches.

    Attributes:
        at_least: with fewer, stages would never all work at once.
        divisor: it must be a multiple of this.
    """

    at_least: int
    divisor: int = 1

    def number_for(self, planned: int) -> int:
        """The least number that satisfies both, and is no less than ``planned``."""
        return math.ceil(max(planned, self.at_least) / self.divisor) * self.divisor


@dataclass(frozen=True)
class Splitter:
    """How this engine cuts a batch into micro-batches.

    Attributes:
        spec: the options ``mb_spec``.
        multiple: every micro-batch's tokens are padded to a multiple of this.
        at_least: and to no fewer than this.
        context: the ranks over which its tokens are cut; ``None`` when all stay here.
        pipeline: what a pipeline asks of the split; ``None`` without one.
        replays_routing: tokens go to the experts that the batch says, where it says so.
    """

    spec: MicroBatchSpec
    multiple: int = 1
    at_least: int = 0
    context: ContextParallel | None = None
    pipeline: PipelineNeeds | None = None
    replays_routing: bool = False

    def plan(self, batch: Batch) -> list[Sequence[int]]:
        """Which sequences of ``batch`` stand in which micro-batch; none is empty.

        Raises:
            DataError: the options do not allow it.
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
        )
        return [indices for indices in plan if indices]

    def number_for(self, planned: int) -> int:
        """How many micro-batches all ranks run when none has planned more than ``planned``."""
        return planned if self.pipeline is None else self.pipeline.number_for(planned)

    def build(
        self, batch: Batch, plan: Sequence[Sequence[int]], request: OutputRequest, number: int
    ) -> list[MicroBatch]:
        """The micro-batches of ``plan``, and as many without sequences as make up ``number``: what a rank runs while
        others still have some. In a pipeline all of a step have one length."""
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
