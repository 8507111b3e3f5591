"""Splits a rank's part of a batch into micro-batches: planned from lengths, filled up to the number that all ranks run.

The plan is pure; only ``Splitter.build`` touches tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from archon_core.contracts.batch import Batch, MicroBatch
from archon_core.contracts.engine_config import MicroBatchSpec
from archon_core.contracts.loss import OutputRequest
from archon_engine.data.micro_batch import build_micro_batch
from archon_engine.data.packing import plan_micro_batches
from archon_engine.data.prefix_tree import PrefixTree
from archon_engine.data.tree_micro_batch import build_tree_micro_batch, tree_of
from archon_engine.data.tree_packing import plan_tree_micro_batches
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
        shares_prefixes: a micro-batch holds a prefix that its sequences share once.
        option: dotted name of the options, for messages.
    """

    spec: MicroBatchSpec
    multiple: int = 1
    at_least: int = 0
    context: ContextParallel | None = None
    pipeline: PipelineNeeds | None = None
    replays_routing: bool = False
    shares_prefixes: bool = False
    option: str = "mb_spec"

    def plan(self, batch: Batch) -> list[Sequence[int]]:
        """Assign the sequences of ``batch`` to micro-batches, none of them empty.

        Raises:
            DataError: the batch does not fit the options.
        """
        if not len(batch):
            return []
        constraints: dict[str, Any] = {
            "n_mbs": max(self.spec.n_mbs, self.pipeline.at_least if self.pipeline else 1),
            "max_tokens_per_mb": self.spec.max_tokens_per_mb,
            "granularity": self.spec.granularity,
            "n_mbs_divisor": math.lcm(self.spec.n_mbs_divisor, self.pipeline.divisor if self.pipeline else 1),
            "algorithm": self.spec.packing_algorithm,
            "option": self.option,
        }
        tree = self._tree(batch) if self.shares_prefixes else None
        if tree is not None and tree.shares:
            plan = plan_tree_micro_batches(tree, batch.lengths, **constraints)
        else:
            plan = plan_micro_batches(batch.lengths, **constraints)
        return [indices for indices in plan if indices]

    def number_for(self, planned: int) -> int:
        """The number of micro-batches that all ranks run, given the largest number that a rank has planned."""
        return planned if self.pipeline is None else self.pipeline.number_for(planned)

    def build(
        self, batch: Batch, plan: Sequence[Sequence[int]], request: OutputRequest, number: int
    ) -> list[MicroBatch]:
        """Build the micro-batches of ``plan``, and micro-batches of padding up to ``number``, which this rank runs
        while others still have sequences. In a pipeline, all micro-batches of a step have the same length."""
        trees = [self._shared_tree(batch, indices) for indices in plan]
        at_least = self.at_least
        if self.pipeline is not None:
            planned = zip(trees, plan, strict=True)
            sizes = [tree.n_tokens if tree else sum(batch.lengths[i] for i in indices) for tree, indices in planned]
            at_least = max(at_least, *sizes, 0)
        options: dict[str, Any] = {
            "multiple": self.multiple,
            "at_least": at_least,
            "context": self.context,
            "replays_routing": self.replays_routing,
        }
        found = [
            build_micro_batch(batch, indices, request, **options)
            if tree is None
            else build_tree_micro_batch(batch.select(indices), indices, tree, request, **options)
            for tree, indices in zip(trees, plan, strict=True)
        ]
        fillers = [build_micro_batch(batch, (), request, **options) for _ in range(number - len(plan))]
        return [*found, *fillers]

    def _tree(self, batch: Batch) -> PrefixTree:
        return tree_of(batch, replays_routing=self.replays_routing)

    def _shared_tree(self, batch: Batch, indices: Sequence[int]) -> PrefixTree | None:
        """The tree of a micro-batch; ``None`` if its sequences share nothing, or are to be computed apart."""
        if not self.shares_prefixes:
            return None
        tree = self._tree(batch.select(indices))
        return tree if tree.shares else None
