"""A forward pass as a list of operations, and how much memory is live while it runs forward and backward.

Each ``Operation`` states the size of its result and what autograd saves for its backward pass. The rules are torch's:

- A result lives until its last reader has run, or, if saved, until the backward pass of the operation that saved it.
- Backward passes run in reverse order. Each allocates the gradients of what its operation read, while the gradient of
  its result and its saved tensors still exist.
- ``torch.utils.checkpoint`` runs the forward pass again, up to the last operation that saves anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple


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
        lasting: memory that stays from forward to backward in every mode of checkpointing; the part of ``extra`` that a
            recomputed pass makes again.
        beside: temporary memory while it runs, besides its result.
        behind: temporary memory while its backward pass runs, besides gradients of results.
        weights: of the gradients of its weights, which stay until the block's backward pass ends.
        passes: whether its result is a sum whose gradient is that of every summand, without a copy.
        is_dispatch: whether its result travels between ranks of experts.
        eager: whether it stays outside of compiled graphs.
        fused: whether selective checkpointing of compiled graphs computes its result wherever it is read, and never
            saves it.
        stays: whether compiled graphs save the result under any budget.
        holds: names of earlier results that exist until it has run in a forward pass, because a function's variables
            refer to them.
    """

    name: str
    bytes: float
    reads: tuple[str, ...]
    saves: tuple[str, ...] = ()
    kept: bool = False
    extra: float = 0.0
    extra_kept: float = 0.0
    lasting: float = 0.0
    beside: float = 0.0
    behind: float = 0.0
    weights: float = 0.0
    passes: bool = False
    is_dispatch: bool = False
    eager: bool = False
    fused: bool = False
    stays: bool = False
    holds: tuple[str, ...] = ()


Operations = Sequence[Operation]

INPUT = "input"
"""Name of a block's input."""


def fuse(operations: Operations) -> Operations:
    """The operations of compiled graphs that keep as selective checkpointing does: fused results are computed again
    from what their operations read. By default graphs save them as inputs of products, which backward reads whole."""
    reads = {operation.name: operation.reads for operation in operations if operation.fused and not operation.stays}

    def origins(name: str) -> tuple[str, ...]:
        return tuple(found for source in reads[name] for found in origins(source)) if name in reads else (name,)

    return tuple(
        operation
        if operation.eager
        else operation._replace(
            saves=tuple(dict.fromkeys(found for name in operation.saves for found in origins(name)))
        )
        for operation in operations
    )


def result_sizes(operations: Operations, input_bytes: float) -> dict[str, float]:
    """Bytes of every result, and of the input."""
    return {INPUT: input_bytes} | {operation.name: operation.bytes for operation in operations}


def saved_by_autograd(operations: Operations, input_bytes: float) -> dict[str, float]:
    """By the name of a result, what autograd saves of it, its ``extra`` included."""
    sizes = result_sizes(operations, input_bytes)
    saved = {name: sizes[name] for operation in operations for name in operation.saves}
    for operation in operations:
        if operation.extra:
            saved[operation.name] = saved.get(operation.name, 0.0) + operation.extra
    return saved


def recomputed(operations: Operations) -> Operations:
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


Keeps = Literal["nothing", "saved", "kept"]
"""What of a forward pass stays to its end: nothing, what autograd saves, or what selective checkpointing keeps."""


def forward_peak(
    operations: Operations, input_bytes: float, *, keeps: Keeps, exist: Mapping[str, float] = MappingProxyType({})
) -> float:
    """Peak of a forward pass, its input included.

    Args:
        keeps: what stays to the end.
        exist: by the name of a result, how much of it exists from the start.
    """
    sizes = result_sizes(operations, input_bytes)
    last_read = {name: place for place, operation in enumerate(operations) for name in _used(operation)}
    stay: set[str] = set()
    if keeps == "saved":
        stay = {name for operation in operations for name in operation.saves}
    elif keeps == "kept":
        stay = {operation.name for operation in operations if operation.kept}
    live = peak = input_bytes + sum(exist.values())
    for place, operation in enumerate(operations):
        made = operation.bytes + operation.extra
        live += made - exist.get(operation.name, 0.0)
        peak = max(peak, live + operation.beside)
        if keeps != "saved":
            live -= operation.extra - (operation.extra_kept if keeps == "kept" else 0.0)
        for name in _used(operation):
            if last_read[name] == place and name != INPUT and name not in stay:
                live -= sizes[name]
    return peak


def _used(operation: Operation) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*operation.reads, *operation.holds)))


class _Gradients:
    """Gradients by name; several names can share one tensor."""

    def __init__(self, name: str, size: float) -> None:
        self._cells: dict[str, list[float]] = {name: [size, 1]}
        self.bytes = size

    def take(self, operation: Operation, sizes: dict[str, float], *, leaves: bool = False) -> float:
        """Replace the gradient of a result by those of what its operation read. Returns the most memory on the way.

        Args:
            leaves: the gradient of the result stays for the second half of the pass.
        """
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
        if not leaves:
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


def backward_peak(
    operations: Operations,
    input_bytes: float,
    *,
    held: Sequence[str] = (),
    is_half: bool = False,
    frees: bool = True,
) -> float:
    """Peak of a backward pass that starts with everything saved.

    Args:
        held: results that stay to the end.
        is_half: compute no gradients of weights, but leave the gradients of results from which they are computed.
        frees: free saved results once they have been read.
    """
    sizes = result_sizes(operations, input_bytes)
    # The first operation to save a result is the last one to run backward.
    release = {name: place for place, operation in reversed([*enumerate(operations)]) for name in operation.saves}
    live = sum(sizes[name] for name in dict.fromkeys((*release, *held))) + sum(
        operation.extra for operation in operations
    )
    gradients = _Gradients(operations[-1].name, operations[-1].bytes)
    peak = live + gradients.bytes
    for place in reversed(range(len(operations))):
        operation = operations[place]
        live += 0.0 if is_half else operation.weights
        leaves = is_half and operation.weights > 0
        peak = max(peak, live + gradients.take(operation, sizes, leaves=leaves) + operation.behind)
        if frees:
            live -= operation.extra
            live -= sum(sizes[name] for name in operation.saves if release[name] == place and name not in held)
    return peak
