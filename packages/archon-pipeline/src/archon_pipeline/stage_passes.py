"""Forward and backward passes of one stage, and what is kept between them.

A backward pass can be whole, or in two parts: the gradient of the input, which another stage waits for, and those of
the weights, which nobody does. The parts are torch's own (torch.distributed.pipelining); the split costs a walk over
the autograd graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from archon_core.contracts.batch import MicroBatch
from archon_core.contracts.model import CausalModule
from archon_core.contracts.packed import OutputName
from archon_core.contracts.pipeline import Objective, ShardedStage
from archon_engine.compat import stage_backward_input, stage_backward_weight


@dataclass
class _Live:
    """A micro-batch between its forward pass and the end of its backward pass.

    Attributes:
        x: what came in.
        out: what went out; the objective on the last stage.
        gradient: of ``out``, from when it is known until it is used.
        weights: groups of weights, with what their gradients are computed from.
    """

    x: Tensor | None
    out: Tensor | None
    gradient: Tensor | None = None
    weights: list[dict[str, Any]] | None = None


class StagePasses:
    """The passes of one stage.

    Args:
        module: the stage.
        groups: its sharded weights.
        is_first: its input are token ids, which have no gradient.
        is_last: its output is what the objective is computed from.
    """

    def __init__(self, module: CausalModule, groups: ShardedStage, *, is_first: bool, is_last: bool) -> None:
        self.module = module
        self._groups = groups
        self.is_first = is_first
        self.is_last = is_last
        self._live: dict[int, _Live] = {}

    @torch.no_grad()
    def infer(self, x: Tensor | None, micro_batch: MicroBatch) -> Tensor | dict[OutputName, Tensor]:
        """Hidden states for the next stage, or outputs on the last one, without gradients."""
        out = self.module(micro_batch.input_ids if x is None else x, micro_batch.packed)
        return micro_batch.whole_outputs(out) if isinstance(out, dict) else out

    def forward(self, number: int, x: Tensor | None, micro_batch: MicroBatch, objective: Objective) -> Tensor | None:
        """Hidden states [tokens, width] for the next stage; ``None`` on the last one.

        Args:
            number: of the micro-batch.
            x: what the stage before gave; ``None`` on the first.
            micro_batch: its ids, sequences and targets.
            objective: applied on the last stage.
        """
        if x is not None:
            x.requires_grad_()
        out = self.module(micro_batch.input_ids if x is None else x, micro_batch.packed)
        if self.is_last:
            self._live[number] = _Live(x, objective(micro_batch.whole_outputs(out), micro_batch))
            return None
        # Splitting its backward pass detaches the output in place, which no view can be.
        out = out.clone() if out._is_view() else out
        self._live[number] = _Live(x, out)
        return out.detach()

    def backward(self, number: int, gradient: Tensor | None) -> Tensor | None:
        """A whole backward pass.

        Args:
            number: of the micro-batch.
            gradient: of the output; ``None`` on the last stage.

        Returns:
            The gradient of the input; ``None`` on the first stage.
        """
        live = self._live.pop(number)
        torch.autograd.backward(live.out, gradient)
        return None if live.x is None else live.x.grad

    def backward_input(self, number: int, gradient: Tensor | None) -> Tensor | None:
        """The gradient of the input alone; ``backward_weight`` must follow. Arguments and result as in ``backward``.

        On the first stage there is none to compute, so all is left to ``backward_weight``. On the last one, the head
        would be computed twice: it does all at once, and ``backward_weight`` has nothing left to do.
        """
        live = self._live[number]
        if self.is_first:
            live.gradient = gradient
            return None
        if self.is_last:
            result = self.backward(number, gradient)
            self._live[number] = _Live(None, None)
            return result
        (result,), weights = stage_backward_input([live.out], [gradient], [live.x], self._weights())
        self._live[number] = _Live(None, None, weights=weights)
        return result

    def backward_weight(self, number: int) -> None:
        """The gradients of the weights, after ``backward_input``."""
        live = self._live.pop(number)
        if live.out is not None:
            torch.autograd.backward(live.out, live.gradient)
        elif live.weights is not None:
            stage_backward_weight(self._weights(), live.weights)
            self._groups.widen()

    def _weights(self) -> Iterator[nn.Parameter]:
        return (weight for weight in self._groups.whole_parameters if weight.requires_grad)

    def clear(self) -> None:
        """Forget micro-batches whose backward pass will not come."""
        self._live.clear()
