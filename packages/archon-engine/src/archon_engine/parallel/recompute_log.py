"""Measures activation checkpointing (``ac_debug``): the results that each block keeps for backward and recomputes.

It measures the first micro-batch of the first step. Outside compiled graphs it watches every operation; a result counts
as kept if its memory still exists when the block has returned. Compiled graphs keep the tensors that autograd saves,
and recompute the operations that are in both the forward and the backward graph.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from archon_engine.compat import (
    TorchDispatchMode,
    inductor_compile,
    size_hint,
    tree_leaves,
)
from archon_engine.parallel.shards import local_values

Contexts = Callable[[], tuple[Any, Any]]
"""A ``context_fn`` of ``torch.utils.checkpoint``: creates the contexts of the first and the second computation."""

REPORT_FILE = "ac_debug-rank0.txt"
"""Name of the first rank's report in the run folder."""

MIB = 2**20


@dataclass
class Tally:
    """Counts operations and the bytes of their results."""

    operations: Counter[str] = field(default_factory=Counter)
    bytes: int = 0

    def add(self, name: str, n_bytes: int) -> None:
        self.operations[name] += 1
        self.bytes += n_bytes

    def __str__(self) -> str:
        names = ", ".join(f"{name} x{count}" if count > 1 else name for name, count in self.operations.most_common())
        return f"{self.bytes / MIB:.3f} MiB ({names or 'nothing'})"


@dataclass
class BlockRecord:
    """One block in one micro-batch.

    Attributes:
        kept: results that stay in memory from forward to backward; saved tensors that no watched operation made, such
            as the block's input, are called ``saved``. A tensor that several blocks keep is counted in the first.
        recomputed: operations that ran a second time, in backward.
    """

    kept: Tally = field(default_factory=Tally)
    recomputed: Tally = field(default_factory=Tally)
    has_recomputed: bool = False


class RecomputeLog:
    """Collects records while the first micro-batch runs.

    Args:
        compiled: whether blocks are compiled.

    Attributes:
        blocks: block name -> record.
        graphs: the operations that each compiled backward graph recomputes; equal blocks share graphs.
    """

    def __init__(self, *, compiled: bool) -> None:
        self._compiled = compiled
        self.blocks: dict[str, BlockRecord] = {}
        self.graphs: list[Tally] = []
        self._forward_names: dict[Any, set[str]] = {}
        self._seen: set[int] = set()

    def watch(self, name: str, block: nn.Module) -> None:
        """Measure what ``block`` keeps, by wrapping its ``forward`` in place. Call this after all other wrapping."""
        block.forward = partial(self._measured, name, block, block.forward)

    def checkpoint_contexts(self, name: str, contexts: Contexts | None = None) -> tuple[Any, Any]:
        """The two contexts of a checkpointed block, with its second computation watched."""
        first, second = contexts() if contexts is not None else (nullcontext(), nullcontext())
        record = self.blocks.get(name)
        if record is None or record.has_recomputed:
            return first, second
        record.has_recomputed = True
        if self._compiled:
            # A dispatch mode would disable compiled code, and eager code does not save the tensors that the checkpoint
            # expects.
            record.recomputed.operations["all of it, compiled"] += 1
            return first, second
        return first, _outside(partial(_Watch, _adds_to(record.recomputed)), second)

    def inner_compile(self, graph: torch.fx.GraphModule, inputs: Any, **options: Any) -> Any:
        """Inspect a graph, then compile it with Inductor.

        AOTAutograd's partitioner copies a node that backward recomputes, with its name, from the forward graph. So
        names in both graphs are those of recomputed operations.
        """
        nodes = {
            node.name: node
            for node in graph.graph.nodes
            if node.op == "call_function" and not getattr(node.target, "is_view", False)
        }
        if not options.get("is_backward"):
            self._forward_names[options.get("graph_id")] = set(nodes)
        else:
            tally = Tally()
            for name in sorted(self._forward_names.get(options.get("graph_id"), set()) & set(nodes)):
                n_bytes = _hinted_bytes(nodes[name].meta.get("val"))
                if n_bytes:  # skips arithmetic on sizes
                    tally.add(_short(nodes[name].target), n_bytes)
            self.graphs.append(tally)
        return inductor_compile(graph, inputs, **options)

    def report(self) -> str:
        """A line per block, and one per compiled backward graph."""
        lines = ["activation checkpointing, first micro-batch:"]
        for name, record in self.blocks.items():
            lines.append(f"  {name}: kept {record.kept}; recomputed {record.recomputed}")
        for number, tally in enumerate(self.graphs):
            lines.append(f"  compiled backward graph {number}, of every block that runs it: recomputes {tally}")
        kept = sum(record.kept.bytes for record in self.blocks.values())
        again = sum(record.recomputed.bytes for record in self.blocks.values())
        lines.append(f"  all blocks: kept {kept / MIB:.3f} MiB; recomputed {again / MIB:.3f} MiB outside of graphs")
        return "\n".join(lines)

    def _measured(self, name: str, block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if name in self.blocks or not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        record = self.blocks[name] = BlockRecord()
        # Only this block's weights: FSDP2 may free them afterwards, and later results may reuse their addresses.
        weights = {_address(local_values(parameter)) for parameter in block.parameters()}
        # Weak references, because the log must not keep storages alive. An address identifies a storage only while that
        # exists, since freed memory is reused; so only addresses of live storages are compared.
        results: list[tuple[str, StorageWeakRef, int, int]] = []

        def saw(operation: str, made: list[Tensor]) -> None:
            for tensor in made:
                storage = tensor.untyped_storage()
                results.append((operation, StorageWeakRef(storage), storage.data_ptr(), storage.nbytes()))

        saved: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            saved[_address(tensor)] = tensor.untyped_storage().nbytes()
            return tensor

        watching = nullcontext() if self._compiled else _Watch(saw)
        with watching, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = forward(*args, **kwargs)
        # The caller holds the block's outputs; they count only if autograd saved them as well.
        returned = {_address(tensor) for tensor in tree_leaves(output) if isinstance(tensor, Tensor)}
        kept = [
            (operation, address, n_bytes)
            for operation, storage, address, n_bytes in results
            if not storage.expired() and address not in returned - set(saved)
        ]
        for operation, address, n_bytes in (*kept, *(("saved", address, n) for address, n in saved.items())):
            if n_bytes and address not in self._seen | weights:
                self._seen.add(address)
                record.kept.add(operation, n_bytes)
        return output


class _Watch(TorchDispatchMode):
    """Reports every operation that computes, with the tensors that it created.

    Views compute nothing; their results share the memory of an argument. In-place operations create no tensor either,
    but compute; their names end in an underscore.
    """

    def __init__(self, on_operation: Callable[[str, list[Tensor]], None]) -> None:
        super().__init__()
        self._on_operation = on_operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_address(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor) and _address(x) not in given | {0}]
        name = _short(func)
        if made or name.endswith("_"):
            self._on_operation(name, made)
        return result


def _adds_to(tally: Tally) -> Callable[[str, list[Tensor]], None]:
    return lambda operation, made: tally.add(operation, sum(tensor.untyped_storage().nbytes() for tensor in made))


@contextmanager
def _outside(make_outer: Callable[[], Any], inner: Any) -> Iterator[None]:
    """Enter the outer mode first. Dispatch modes are a stack whose top sees an operation first, so the outer one sees
    only what ``inner``, a selective checkpoint's mode, does not answer from what it kept."""
    with ExitStack() as stack:
        stack.enter_context(make_outer())
        stack.enter_context(inner)
        yield


def _address(tensor: Tensor) -> int:
    """The address of a tensor's storage; 0 without storage."""
    with contextlib.suppress(RuntimeError, NotImplementedError):  # wrapper subclasses have no storage
        return tensor.untyped_storage().data_ptr()
    return 0


def _short(operation: Any) -> str:
    """``mm`` for ``aten::mm.default``."""
    name = operation.name() if callable(getattr(operation, "name", None)) else getattr(operation, "__name__", "?")
    return name.split("::")[-1].split(".")[0]


def _hinted_bytes(value: Any) -> int:
    """Bytes of a traced result, with the number of tokens that it was traced with."""
    return sum(
        size_hint(tensor.numel()) * tensor.dtype.itemsize for tensor in tree_leaves(value) if isinstance(tensor, Tensor)
    )
