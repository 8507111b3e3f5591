"""Runners execute the micro-batches of a step. The sequential one runs them one after the other on one module;
a pipelined one comes with archon-pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from archon_core.data.micro_batch import MicroBatch
from archon_core.nn.packed import OutputName, PackedSequences
from archon_core.parallel.fsdp import FsdpGroups
from archon_core.protocols import CausalModule

Objective = Callable[[Mapping[OutputName, Tensor], MicroBatch], Tensor]
"""From a micro-batch's outputs, padding removed, to the scalar whose gradients are accumulated."""


class Runner(Protocol):
    """Runs all micro-batches of a step."""

    def train(self, micro_batches: Sequence[MicroBatch], objective: Objective) -> None:
        """Accumulate the gradients of the sum of ``objective`` over all micro-batches."""

    def forward(self, micro_batches: Sequence[MicroBatch]) -> Iterator[tuple[MicroBatch, dict[OutputName, Tensor]]]:
        """Each micro-batch with its outputs, padding removed, without gradients, as they come."""


class PipelinedRunner(Runner, Protocol):
    """Runs them through the stages of a pipeline, and can tell when it did what."""

    def pass_through(self, x: Tensor, packed: PackedSequences) -> dict[OutputName, Tensor]:
        """One forward pass of whole token ids [T] through all stages; the outputs on every rank."""

    def record_next(self) -> None:
        """Time the actions of the next call of ``train``."""

    def recorded(self, *, step: int) -> str | None:
        """What was timed, as the content of a file; ``None`` on all but the first pipeline rank. Collective."""


class SequentialRunner:
    """Forward and backward of one micro-batch after the other."""

    def __init__(self, module: CausalModule, groups: FsdpGroups | None = None) -> None:
        self._module = module
        self._groups = groups

    def train(self, micro_batches: Sequence[MicroBatch], objective: Objective) -> None:
        try:
            for micro_batch in micro_batches:
                outputs = self._module(micro_batch.input_ids, micro_batch.packed)
                objective(micro_batch.whole_outputs(outputs), micro_batch).backward()
        except BaseException:
            # Whoever catches this may load other weights; whole ones that stayed behind would hide them.
            self._end_forward_passes()
            raise

    def forward(self, micro_batches: Sequence[MicroBatch]) -> Iterator[tuple[MicroBatch, dict[OutputName, Tensor]]]:
        try:
            for micro_batch in micro_batches:
                with torch.no_grad():
                    outputs = self._module(micro_batch.input_ids, micro_batch.packed)
                yield micro_batch, micro_batch.whole_outputs(outputs)
        finally:
            self._end_forward_passes()

    def _end_forward_passes(self) -> None:
        if self._groups is not None:
            self._groups.end_forward_passes()
