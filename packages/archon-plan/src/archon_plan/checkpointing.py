"""Memory of a block in each mode of activation checkpointing, from the list of its operations.

Gradients of weights in the compute type are counted while their block runs backward; afterwards FSDP2 reduces them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from archon_plan.liveness import (
    INPUT,
    Operations,
    backward_peak,
    forward_peak,
    recomputed,
    result_sizes,
    saved_by_autograd,
)
from archon_plan.setting import Checkpointing


class Usage(NamedTuple):
    """Memory of a block for one micro-batch, in bytes.

    Attributes:
        kept: from forward to backward.
        dispatched: the part of ``kept`` that is rows for experts.
        peak: while it runs backward, recomputation included; includes ``kept`` and the gradient of its output.
        half: likewise in the first half of a split backward pass.
        second: likewise in the second half, without the gradients that the first half left to it.
        deferred: gradients that the first half leaves to the second, which computes those of weights from them.
        forward: while it runs forward for the first time; includes its input.
        keeps_input: whether ``kept`` includes the block's input.
    """

    kept: float
    dispatched: float
    peak: float
    half: float
    second: float
    deferred: float
    forward: float
    keeps_input: bool = True


def without_checkpointing(operations: Operations, input_bytes: float) -> Usage:
    """Memory of a block whose saved results all stay."""
    saved = saved_by_autograd(operations, input_bytes)
    return Usage(
        kept=sum(saved.values()),
        dispatched=_dispatched(operations, saved),
        peak=backward_peak(operations, input_bytes),
        half=backward_peak(operations, input_bytes, is_half=True, frees=False),
        second=sum(saved.values()) + _weights(operations),
        deferred=_deferred(operations),
        forward=forward_peak(operations, input_bytes, keeps="saved"),
        keeps_input=INPUT in saved,
    )


def fully_recomputed(operations: Operations, input_bytes: float) -> Usage:
    """Memory of a block of which only the input stays."""
    lasting = _lasting(operations)
    again = operations[-1].bytes + forward_peak(recomputed(operations), input_bytes, keeps="saved")
    return Usage(
        kept=input_bytes + lasting,
        dispatched=lasting,
        peak=lasting + max(again, backward_peak(operations, input_bytes, held=(INPUT,))),
        half=lasting + max(again, backward_peak(operations, input_bytes, held=(INPUT,), is_half=True)),
        second=lasting + again - operations[-1].bytes + _weights(operations),
        deferred=_deferred(operations),
        forward=forward_peak(operations, input_bytes, keeps="nothing"),
    )


def selectively_recomputed(operations: Operations, input_bytes: float) -> Usage:
    """Memory of a block of which the input and marked results stay.

    Recomputation takes a kept result where its operation would run again. The results of operations that do not run
    again stay to the end.
    """
    ran, lasting = recomputed(operations), _lasting(operations)
    rest, cached = _kept_selectively(operations)
    again = forward_peak(ran, input_bytes, keeps="saved", exist=cached)
    back = backward_peak(operations, input_bytes, held=(INPUT,))
    peak = rest + max(operations[-1].bytes + again, back)
    return Usage(
        kept=input_bytes + sum(cached.values()) + rest,
        dispatched=lasting + _dispatched(operations, cached),
        peak=peak,
        half=peak,
        second=peak,
        deferred=_deferred(operations),
        forward=rest + forward_peak(operations, input_bytes, keeps="kept"),
    )


def within_budget(operations: Operations, input_bytes: float, budget: float) -> Usage:
    """Upper bound of the memory of a compiled block that keeps a share of what it can recompute. The peak is that of a
    block which keeps everything."""
    most = without_checkpointing(operations, input_bytes)
    return most._replace(kept=_kept_within_budget(operations, input_bytes, budget, most.kept), keeps_input=True)


def kept_bytes(operations: Operations, input_bytes: float, mode: Checkpointing, budget: float) -> float:
    """``Usage.kept`` of a mode, in less time. ``selective`` is that of blocks that are not compiled."""
    if mode == "full":
        return input_bytes + _lasting(operations)
    if mode == "selective":
        rest, cached = _kept_selectively(operations)
        return input_bytes + sum(cached.values()) + rest
    most = sum(saved_by_autograd(operations, input_bytes).values())
    return most if mode == "none" else _kept_within_budget(operations, input_bytes, budget, most)


def _kept_selectively(operations: Operations) -> tuple[float, dict[str, float]]:
    """What stays to the end, and by operation what recomputation takes."""
    cached = {o.name: o.extra_kept + (o.bytes if o.kept else 0.0) for o in operations if o.kept or o.extra_kept}
    behind = operations[len(recomputed(operations)) :]
    return _lasting(operations) + sum(cached.pop(operation.name, 0.0) for operation in behind), cached


def _kept_within_budget(operations: Operations, input_bytes: float, budget: float, most: float) -> float:
    """Each graph keeps at most ``smallest + budget x (largest - smallest)``: AOTAutograd solves a knapsack problem
    (``torch._functorch.partitioners``). The smallest is the block's input, results marked ``stays``, and what eager
    parts save, which no graph can recompute."""
    sizes = result_sizes(operations, input_bytes)
    eager = [operation for operation in operations if operation.eager]
    saved = (name for operation in eager for name in operation.saves)
    stay = (operation.name for operation in operations if operation.stays)
    least = sum(sizes[name] for name in dict.fromkeys((INPUT, *saved, *stay))) + sum(
        operation.extra for operation in eager
    )
    return least + budget * (most - least)


def _dispatched(operations: Operations, kept: Mapping[str, float]) -> float:
    return sum(kept.get(operation.name, 0.0) for operation in operations if operation.is_dispatch)


def _weights(operations: Operations) -> float:
    return sum(operation.weights for operation in operations)


def _lasting(operations: Operations) -> float:
    return sum(operation.lasting for operation in operations)


def _deferred(operations: Operations) -> float:
    """The gradients from which those of weights are computed (``torch.distributed.pipelining._backward``)."""
    return sum(operation.bytes for operation in operations if operation.weights)
