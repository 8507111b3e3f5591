"""Runs the micro-batches of a step one after the other on one module. archon-pipeline has the runner for pipelines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from archon_core.contracts.batch import MicroBatch
from archon_core.contracts.model import CausalModule
from archon_core.contracts.packed import OutputName
from archon_core.contracts.pipeline import Objective
from archon_engine.parallel.fsdp import FsdpGroups
from archon_engine.profiling.ranges import profiled_range


class SequentialRunner:
    """Forward and backward of one micro-batch after the other."""

    def __init__(self, module: CausalModule, groups: FsdpGroups | None = None) -> None:
        self._module = module
        self._groups = groups

    def train(self, micro_batches: Sequence[MicroBatch], objective: Objective) -> None:
        try:
            for number, micro_batch in enumerate(micro_batches):
                with profiled_range("forward", number):
                    outputs = self._module(micro_batch.input_ids, micro_batch.packed)
                    loss = objective(micro_batch.whole_outputs(outputs), micro_batch)
                with profiled_range("backward", number):
                    loss.backward()
        except BaseException:
            # The caller may catch this and load other weights, which gathered weights left behind would hide.
            self._end_forward_passes()
            raise

    def forward(self, micro_batches: Sequence[MicroBatch]) -> Iterator[tuple[MicroBatch, dict[OutputName, Tensor]]]:
        try:
            for number, micro_batch in enumerate(micro_batches):
                with torch.no_grad(), profiled_range("forward", number):
                    outputs = self._module(micro_batch.input_ids, micro_batch.packed)
                yield micro_batch, micro_batch.whole_outputs(outputs)
        finally:
            self._end_forward_passes()

    def _end_forward_passes(self) -> None:
        if self._groups is not None:
            self._groups.end_forward_passes()
