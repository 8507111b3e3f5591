"""Forward and backward passes of one stage, and the state that a micro-batch keeps between them.

A backward pass is whole, or split in two: the gradient of the input, which another stage waits for, and the gradients
of the weights, which no other rank needs. The halves are those of torch.distributed.pipelining; splitting costs a walk
over the autograd graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import GraphExecGroup

from archon_core.contracts.batch import MicroBatch
from archon_core.contracts.model import CausalModule
from archon_core.contracts.packed import OutputName
from archon_core.contracts.pipeline import Objective, ShardedStage
from archon_engine.compat import stage_backward_input, stage_backward_weight


@dataclass
class _LiveMicroBatch:
    """A micro-batch between its forward pass and the end of its backward pass.

    Attributes:
        x: input of the stage, a leaf; ``None`` on the first stage, whose input are token ids.
        out: output of the stage; on the last stage the scalar objective.
        gradient: gradient of ``out`` that ``backward_input`` leaves to ``backward_weight``.
        weights: torch's groups of weights with the intermediate gradients that theirs are computed from.
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
        is_first: whether its input are token ids, which have no gradient.
        is_last: whether the objective is computed from its output.
    """

    def __init__(self, module: CausalModule, groups: ShardedStage, *, is_first: bool, is_last: bool) -> None:
        self.module = module
        self._groups = groups
        self.is_first = is_first
        self.is_last = is_last
        self._live: dict[int, _LiveMicroBatch] = {}

    @torch.no_grad()
    def infer(self, x: Tensor | None, micro_batch: MicroBatch) -> Tensor | dict[OutputName, Tensor]:
        """Forward pass without gradients: hidden states [tokens, width] for the next stage, or the final outputs."""
        out = self.module(micro_batch.input_ids if x is None else x, micro_batch.packed)
        return micro_batch.whole_outputs(out) if isinstance(out, dict) else out

    def forward(self, number: int, x: Tensor | None, micro_batch: MicroBatch, objective: Objective) -> Tensor | None:
        """Forward pass: hidden states [tokens, width] for the next stage; ``None`` on the last one.

        Args:
            number: index of the micro-batch in the step.
            x: output of the stage before [tokens, width]; ``None`` on the first. Becomes a leaf of the graph.
            micro_batch: token ids, sequences and targets.
            objective: applied on the last stage.
        """
        if x is not None:
            x.requires_grad_()
        out = self.module(micro_batch.input_ids if x is None else x, micro_batch.packed)
        if self.is_last:
            self._live[number] = _LiveMicroBatch(x, objective(micro_batch.whole_outputs(out), micro_batch))
            return None
        # stage_backward_input detaches the output in place, which autograd forbids for a view.
        out = out.clone() if out._is_view() else out
        self._live[number] = _LiveMicroBatch(x, out)
        # Detached: each stage has its own graph, also where the next stage is on this rank.
        return out.detach()

    def backward(self, number: int, gradient: Tensor | None) -> Tensor | None:
        """Whole backward pass: accumulates the gradients of the weights.

        Args:
            number: index of the micro-batch in the step.
            gradient: gradient of the output [tokens, width]; ``None`` on the last stage.

        Returns:
            The gradient of the input [tokens, width]; ``None`` on the first stage.
        """
        live = self._live.pop(number)
        self._walk_whole(live.out, gradient)
        return None if live.x is None else live.x.grad

    def backward_input(self, number: int, gradient: Tensor | None) -> Tensor | None:
        """First half of a split backward pass: the gradient of the input. ``backward_weight`` must follow.

        Arguments and result are those of ``backward``. The ends of the pipeline do not split. The first stage has no
        input gradient to compute, so it leaves all work to ``backward_weight``. The last stage does all work here,
        because two walks over its graph would run the backward pass of the head twice.
        """
        live = self._live[number]
        if self.is_first:
            live.gradient = gradient
            return None
        if self.is_last:
            result = self.backward(number, gradient)
            self._live[number] = _LiveMicroBatch(None, None)  # tells backward_weight that nothing is left
            return result
        (result,), weights = stage_backward_input([live.out], [gradient], [live.x], self._weights())
        # Drops input and output: the halves need only the intermediate gradients from here on.
        self._live[number] = _LiveMicroBatch(None, None, weights=weights)
        return result

    def backward_weight(self, number: int) -> None:
        """Second half of a split backward pass: the gradients of the weights."""
        live = self._live.pop(number)
        if live.out is not None:
            self._walk_whole(live.out, live.gradient)
        elif live.weights is not None:
            self._add_weight_gradients(live.weights)
            # FSDP2's hooks do not see this half: without widen(), gradients of several micro-batches would be summed in
            # the compute dtype instead of the reduction dtype.
            self._groups.widen()

    def _walk_whole(self, out: Tensor | None, gradient: Tensor | None) -> None:
        assert out is not None, "a micro-batch has one backward pass"
        # A first stage of frozen weights alone, such as an embedding beside adapters, has no graph.
        if self.is_last or out.requires_grad:
            torch.autograd.backward(out, gradient)

    def _add_weight_gradients(self, groups: list[dict[str, Any]]) -> None:
        """Walk the graph once per group of weights, and recompute each checkpointed block once.

        Args:
            groups: of ``stage_backward_input``; emptied, because they keep the graph alive.
        """
        # A graph node is freed once everything behind it is, and what was recomputed for a node is freed with it. From
        # the last unit to the first, at most one block's recomputed results exist at a time.
        for weights in self._groups.weights_in_turn():
            in_turn = {id(weight) for weight in weights}
            own = [group for group in groups if any(id(node.variable) in in_turn for node in group["params"])]
            groups[:] = [group for group in groups if not any(group is chosen for chosen in own)]
            # Without a common GraphExecGroup a checkpoint recomputes its block in every walk. Walks in one may not read
            # the same saved tensor, as walks from several nodes may: one of these nodes can lie behind another.
            single = [group for group in own if len(group["intermediates"]) == 1]
            with GraphExecGroup():
                _walk(single)
            _walk([group for group in own if "intermediates" in group])
        assert not groups, "every weight belongs to a unit"

    def _weights(self) -> Iterator[nn.Parameter]:
        # The unsharded parameters, which the graph leads to; the module itself may show the sharded ones between
        # passes.
        return (weight for weight in self._groups.whole_parameters if weight.requires_grad)

    def clear(self) -> None:
        """Drop the state of micro-batches whose backward pass will not come."""
        self._live.clear()


def _walk(groups: list[dict[str, Any]]) -> None:
    """Add the gradients of these groups' weights; removes their ``intermediates``."""
    stage_backward_weight((node.variable for group in groups for node in group["params"]), groups)
