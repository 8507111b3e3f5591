"""A block's forward pass as a list of operations, and the memory that follows from it.

Each ``Operation`` states the size of its result and what autograd saves for its backward pass. From the list follow,
without fitted constants: what remains between forward and backward in each mode of activation checkpointing, and the
peak while the block runs backward. The rules are torch's:

- A result lives until its last reader has run, or, if saved, until the backward pass of the operation that saved it.
- Backward passes run in reverse order. Each allocates the gradients of what its operation read, while the gradient of
  its result and its saved tensors still exist.
- ``torch.utils.checkpoint`` runs the forward pass again, up to the last operation that saves anything. Selective
  checkpointing keeps the results marked ``kept`` and computes the others again.

Gradients of weights are no activations and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Operation(NamedTuple):
    """One operation, named after its result. All sizes in bytes.

    Attributes:
        name: of the result.
        bytes: of the result, and of its gradient.
        reads: names of the results it reads, to which its backward pass gives gradients.
        saves: names of the results that its backward pass reads, possibly its own.
        kept: whether selective checkpointing keeps the result: products, attention and collectives
            (``archon_engine.parallel.activation_checkpointing.is_kept``).
        extra: further results that autograd saves.
        extra_kept: the part of ``extra`` that selective checkpointing keeps.
        beside: temporary memory while it runs, besides its result.
        behind: temporary memory while its backward pass runs, besides gradients of results.
        passes: whether its result is a sum whose gradient is that of every summand, without a copy.
        eager: whether it stays outside of compiled graphs.
        fused: whether compiled graphs compute its result wherever it is read, so that it is never saved.
    """

    name: str
    bytes: float
    reads: tuple[str, ...]
    saves: tuple[str, ...] = ()
    kept: bool = False
    extra: float = 0.0
    extra_kept: float = 0.0
    beside: float = 0.0
    behind: float = 0.0
    passes: bool = False
    eager: bool = False
    fused: bool = False


class Usage(NamedTuple):
    """Memory of a block for one micro-batch, in bytes.

    Attributes:
        kept: from forward to backward.
        peak: while it runs backward, recomputation included; includes ``kept`` and the gradient of its output.
        forward: while it runs forward for the first time; includes its input.
        deferred: gradients that the first half of a split backward pass leaves to the second.
    """

    kept: float
    peak: float
    forward: float
    deferred: float = 0.0


Operations = Sequence[Operation]

INPUT = "input"
"""Name of a block's input."""


def saved_bytes(operations: Operations, input_bytes: float) -> float:
    """What autograd saves of a forward pass, each result once."""
    sizes = _sizes(operations, input_bytes)
    names = {name for operation in operations for name in operation.saves}
    return sum(sizes[name] for name in names) + sum(operation.extra for operation in operations)


def kept_bytes(operations: Operations, input_bytes: float) -> float:
    """What selective checkpointing keeps: marked results, and the input."""
    return input_bytes + sum(o.extra_kept + (o.bytes if o.kept else 0.0) for o in operations)


def without_checkpointing(operations: Operations, input_bytes: float) -> Usage:
    """Memory of a block whose saved results all stay."""
    kept = saved_bytes(operations, input_bytes)
    return Usage(kept, _backward(operations, input_bytes), _forward(operations, input_bytes, saves=True))


def fully_recomputed(operations: Operations, input_bytes: float) -> Usage:
    """Memory of a block of which only the input stays."""
    result = operations[-1].bytes
    again = result + _forward(_recomputed(operations), input_bytes, saves=True)
    peak = max(again, _backward(operations, input_bytes, held={INPUT}))
    return Usage(input_bytes, peak, _forward(operations, input_bytes, saves=False))


def selectively_recomputed(operations: Operations, input_bytes: float) -> Usage:
    """Memory of a block of which the input and marked results stay."""
    kept, result = kept_bytes(operations, input_bytes), operations[-1].bytes
    ran = _recomputed(operations)
    never_taken = [operation for operation in operations[len(ran) :] if operation.kept]
    rest = sum(operation.bytes + operation.extra_kept for operation in never_taken)
    again = result + rest + _forward(ran, input_bytes, saves=True, cached=True)
    back = rest + _backward(operations, input_bytes, held={INPUT})
    return Usage(kept, max(again, back), _forward(operations, input_bytes, saves=False, keeps=True))


def within_budget(operations: Operations, input_bytes: float, budget: float) -> Usage:
    """Upper bound of the memory of a compiled block that keeps a share of what it can recompute.

    Each graph keeps at most ``smallest + budget x (largest - smallest)``: AOTAutograd solves a knapsack problem
    (``torch._functorch.partitioners``). The smallest are the inputs of the block and what its eager parts save, which no
    graph recomputes. The peak is that of a block which keeps everything.
    """
    most = without_checkpointing(operations, input_bytes)
    sizes = _sizes(operations, input_bytes)
    eager = [operation for operation in operations if operation.eager]
    names = {INPUT, *(name for operation in eager for name in operation.saves)}
    least = sum(sizes[name] for name in names) + sum(operation.extra for operation in eager)
    return most._replace(kept=least + budget * (most.kept - least))


def fuse(operations: Operations) -> Operations:
    """The operations as compiled graphs run them: fused results are computed again from what their operations save."""
    saves = {operation.name: operation.saves for operation in operations if operation.fused}

    def origins(name: str) -> tuple[str, ...]:
        return tuple(found for source in saves[name] for found in origins(source)) if name in saves else (name,)

    return tuple(
        operation._replace(saves=tuple(dict.fromkeys(found for name in operation.saves for found in origins(name))))
        for operation in operations
    )


def _sizes(operations: Operations, input_bytes: float) -> dict[str, float]:
    return {INPUT: input_bytes} | {operation.name: operation.bytes for operation in operations}


def _recomputed(operations: Operations) -> Operations:
    """The operations that recomputation runs: it stops once the last saved tensor exists.

    An operation's arguments are saved before it runs, its own results after.
    """
    for place in reversed(range(len(operations))):
        operation = operations[place]
        if operation.extra or operation.name in operation.saves:
            return operations[: place + 1]
        if operation.saves:
            return operations[:place]
    return ()


def _forward(
    operations: Operations, input_bytes: float, *, saves: bool, keeps: bool = False, cached: bool = False
) -> float:
    """Peak of a forward pass, its input included.

    Args:
        saves: autograd saves what backward needs.
        keeps: kept results stay to the end, as the first pass of selective checkpointing leaves them.
        cached: kept results exist from the start.
    """
    sizes = _sizes(operations, input_bytes)
    last_read = {name: place for place, operation in enumerate(operations) for name in operation.reads}
    saved = {name for operation in operations for name in operation.saves} if saves else set()
    if keeps:
        saved |= {operation.name for operation in operations if operation.kept}
    ends: dict[int, list[float]] = {}
    for name, place in last_read.items():
        if name != INPUT and name not in saved:
            ends.setdefault(place, []).append(sizes[name])
    live = input_bytes
    if cached:
        live += sum(o.extra_kept + (o.bytes if o.kept else 0.0) for o in operations)
    peak = live
    for place, operation in enumerate(operations):
        extra = operation.extra if saves else operation.extra_kept if keeps else 0.0
        new = operation.bytes + (extra or 0.0)
        if cached:
            new -= operation.extra_kept + (operation.bytes if operation.kept else 0.0)
        if operation.passes:
            pass
        live += new
        peak = max(peak, live + operation.beside + (0.0 if saves or keeps else operation.extra))
        live -= sum(ends.get(place, ()))
    return peak


class _Gradients:
    """Gradients by name; several names can share one tensor."""

    def __init__(self, name: str, size: float) -> None:
        self._cells: dict[str, list[float]] = {name: [size, 1]}
        self.bytes = size

    def take(self, operation: Operation, sizes: dict[str, float]) -> float:
        """Replace the gradient of an operation's result by those of what it read. Returns the most memory on the way."""
        own = self._cells.pop(operation.name)
        most = self.bytes
        if operation.passes:
            for name in operation.reads:
                own[1] += 1
                most = max(most, self._add(name, own))
        else:
            # All new gradients exist before any of them is added to an earlier one.
            new = {name: [sizes[name], 1.0] for name in operation.reads}
            self.bytes += sum(cell[0] for cell in new.values())
            most = self.bytes
            for name, cell in new.items():
                self._add(name, cell)
        self._drop(own)
        return most

    def _add(self, name: str, cell: list[float]) -> float:
        before = self._cells.get(name)
        if before is None:
            self._cells[name] = cell
            return self.bytes
        # Autograd adds in place if nobody else refers to one of the two.
        if before[1] == 1:
            self._drop(cell)
        elif cell[1] == 1:
            self._cells[name] = cell
            self._drop(before)
        else:
            self._cells[name] = [cell[0], 1.0]
            self.bytes += cell[0]
            most = self.bytes
            self._drop(before)
            self._drop(cell)
            return most
        return self.bytes

    def _drop(self, cell: list[float]) -> None:
        cell[1] -= 1
        if cell[1] == 0:
            self.bytes -= cell[0]


def _backward(operations: Operations, input_bytes: float, *, held: Iterable[str] = ()) -> float:
    """Peak of a backward pass that starts with everything saved.

    Args:
        held: results that stay to the end.
    """
    sizes = _sizes(operations, input_bytes)
    held = set(held)
    released: dict[str, int] = {}
    for place, operation in enumerate(operations):
        for name in operation.saves:
            released.setdefault(name, place)  # the first to save is the last to run backward
    frees: dict[int, float] = {}
    for name, place in released.items():
        if name not in held:
            frees[place] = frees.get(place, 0.0) + sizes[name]
    saved = {*released, *held}
    live = sum(sizes[name] for name in saved) + sum(operation.extra for operation in operations)
    gradients = _Gradients(operations[-1].name, operations[-1].bytes)
    peak = live + gradients.bytes
    for place in reversed(range(len(operations))):
        operation = operations[place]
        peak = max(peak, live + gradients.take(operation, sizes) + operation.behind)
        live -= frees.get(place, 0.0) + operation.extra
    return peak
