"""Counts what a rank sends to others: every collective and message of torch.distributed, from its real tensors.

``WireCounter`` is a dispatch mode, so it sees each operation that reaches a process group, whoever starts it: FSDP2,
functional collectives, their backward passes, plain calls. A collective that selective checkpointing answers from what
it kept does not reach a process group, and is not counted. Process groups number their operations; at the end the
counter compares these numbers with what it saw, so it cannot miss one.

Bytes are those that the rank sends to others by the usual algorithms: in a ring, (n - 1) / n of the whole buffer for
all-gather and reduce-scatter and twice that for all-reduce; the parts for other ranks of an all-to-all, whatever their
sizes; the tensor for a message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode  # private, as in torch's own CommDebugMode


@dataclass(frozen=True)
class Sent:
    """One operation.

    Attributes:
        members: global ranks of the group.
        collective: as in ``archon_plan.results``.
        bytes: that this rank sends to others.
        inside: name of the exchange of Python values that it belongs to; empty for tensors.
    """

    members: tuple[int, ...]
    collective: str
    bytes: Fraction
    inside: str = ""


@dataclass
class WireCounter(TorchDispatchMode):
    """Records the operations of this process while it is active.

    Attributes:
        sent: in order; groups of one rank are left out, because nothing is sent in them.
    """

    sent: list[Sent] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._inside = ""
        self._seen: Counter[str] = Counter()
        self._before: dict[str, int] = {}

    def __enter__(self) -> Any:
        self._before = _operations()
        return super().__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        if kind is None:
            done = {name: number - self._before.get(name, 0) for name, number in _operations().items()}
            assert {name: number for name, number in done.items() if number} == self._seen, "operations were missed"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, name = func.namespace, func._opname
        if namespace in ("c10d", "_c10d_functional"):
            self._record(namespace, name, args)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        """Attribute the operations inside to an exchange of Python values."""
        before, self._inside = self._inside, name
        try:
            yield
        finally:
            self._inside = before

    def _record(self, namespace: str, name: str, args: Any) -> None:
        measure = (_C10D if namespace == "c10d" else _FUNCTIONAL)[name]  # KeyError for an operation not known here
        if measure is None:
            return
        group = _group_of(args, namespace)
        self._seen[group.group_name] += 1
        members = tuple(dist.get_process_group_ranks(group))
        if len(members) == 1:
            return
        if name == "recv_":
            return  # counted where it is sent
        collective, n_bytes = measure(args, len(members), dist.get_rank(group))
        self.sent.append(Sent(members, collective, Fraction(n_bytes), self._inside))


Measure = Callable[[Any, int, int], tuple[str, Any]]


def _size(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _sizes(tensors: Any) -> int:
    return sum(map(_size, tensors))


def _all_to_all(x: Tensor, splits: Any, n: int, rank: int) -> tuple[str, Any]:
    """Splits are the rows for each rank; empty for equal ones."""
    if not splits:
        return "all_to_all", Fraction(_size(x) * (n - 1), n)
    row = x.element_size() * (x.numel() // x.shape[0] if x.shape[0] else 0)
    return "all_to_all", row * (sum(splits) - splits[rank])


_C10D: dict[str, Measure | None] = {
    "_allgather_base_": lambda a, n, rank: ("all_gather", _size(a[1]) * (n - 1)),
    "allgather_": lambda a, n, rank: ("all_gather", _sizes(a[1]) * (n - 1)),
    "_reduce_scatter_base_": lambda a, n, rank: ("reduce_scatter", Fraction(_size(a[1]) * (n - 1), n)),
    "allreduce_": lambda a, n, rank: ("all_reduce", Fraction(2 * _sizes(a[0]) * (n - 1), n)),
    "alltoall_base_": lambda a, n, rank: _all_to_all(a[1], a[4], n, rank),
    "send": lambda a, n, rank: ("send", _sizes(a[0])),
    "recv_": lambda a, n, rank: ("send", 0),
    "broadcast_": lambda a, n, rank: ("broadcast", _sizes(a[0]) if rank == a[2] else 0),
}

_FUNCTIONAL: dict[str, Measure | None] = {
    "all_gather_into_tensor": lambda a, n, rank: ("all_gather", _size(a[0]) * (n - 1)),
    "reduce_scatter_tensor": lambda a, n, rank: ("reduce_scatter", Fraction(_size(a[0]) * (n - 1), n)),
    "all_reduce": lambda a, n, rank: ("all_reduce", Fraction(2 * _size(a[0]) * (n - 1), n)),
    "all_to_all_single": lambda a, n, rank: _all_to_all(a[0], a[2], n, rank),
    "wait_tensor": None,
    "_wrap_tensor_autograd": None,
}


def _operations() -> dict[str, int]:
    """Name of each process group -> number of its operations so far."""
    groups = dist.distributed_c10d._world.pg_map
    return {group.group_name: group._get_sequence_number_for_group() for group in groups}


def _group_of(args: Any, namespace: str) -> dist.ProcessGroup:
    if namespace == "_c10d_functional":
        return dist.distributed_c10d._resolve_process_group(args[-1])
    boxed = next(x for x in args if type(x).__name__ == "ScriptObject" and "ProcessGroup" in x._type().qualified_name())
    return dist.ProcessGroup.unbox(boxed)
