"""Every private or renamed torch API that Archon uses, in one place.

Each entry states the torch versions it was seen on, the state of upstream, and the condition for its removal.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed._functional_collectives as functional_collectives
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor.placement_types import Placement, _StridedShard

# A mode that sees every operation, and a function that finds the tensors in nested structures. torch's documentation
# uses both, but their modules have private names in 2.11 to 2.13. Import them from a public place once there is one.
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils.checkpoint import SAC_IGNORED_OPS

if TYPE_CHECKING:
    from torch.distributed.pipelining._backward import stage_backward_input as stage_backward_input
    from torch.distributed.pipelining._backward import stage_backward_weight as stage_backward_weight


def __getattr__(name: str) -> Any:
    """The two halves of a backward pass, as torch's own pipeline stages compute them.

    Imported when first used: the module brings torch._dynamo, for which a run without pipeline would wait. Private,
    unchanged in 2.11 to 2.13. Import them from their public place once there is one.
    """
    if name in ("stage_backward_input", "stage_backward_weight"):
        from torch.distributed.pipelining import _backward

        return getattr(_backward, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def all_gather_with_grad(x: Tensor, dim: int, group: Any) -> Tensor:
    """Concatenate the ranks' ``x`` along ``dim``; backward sums the gradients and returns each rank's part.

    torch.compile needs functional collectives, whose module is private in 2.11 to 2.13. Version 2.13 renamed this
    function and warns about the old name. Remove when a public functional API exists (pytorch/pytorch RFC 93173).
    """
    gather = getattr(functional_collectives, "all_gather_single_autograd", None)
    return _waited((gather or functional_collectives.all_gather_tensor_autograd)(x, dim, group))


def reduce_scatter_with_grad(x: Tensor, dim: int, group: Any) -> Tensor:
    """Sum the ranks' ``x`` and return this rank's part along ``dim``; backward gathers. See
    ``all_gather_with_grad``."""
    scatter = getattr(functional_collectives, "reduce_scatter_single_autograd", None)
    return _waited((scatter or functional_collectives.reduce_scatter_tensor_autograd)(x, "sum", dim, group))


def all_to_all_with_grad(
    x: Tensor, group: Any, sent: Sequence[int] | None = None, received: Sequence[int] | None = None
) -> Tensor:
    """Send part i of ``x`` along dim 0 to rank i; return the received parts in rank order. Backward sends gradients
    back.

    See ``all_gather_with_grad``; this function was not renamed.

    Args:
        sent: number of rows for each rank, possibly 0; ``None`` for equal parts.
        received: number of rows from each rank; ``None`` for equal parts.
    """
    exchange = functional_collectives.all_to_all_single_autograd
    return _waited(exchange(x.contiguous(), _listed(received), _listed(sent), group))


def all_to_all(
    x: Tensor, group: Any, sent: Sequence[int] | None = None, received: Sequence[int] | None = None
) -> Tensor:
    """``all_to_all_with_grad`` without gradients."""
    exchange = functional_collectives.all_to_all_single
    return functional_collectives.wait_tensor(exchange(x.contiguous(), _listed(received), _listed(sent), group))


def start_all_to_all(x: Tensor, group: Any, sent: Sequence[int], received: Sequence[int]) -> Callable[[], Tensor]:
    """``all_to_all_with_grad`` in two parts: this call starts the exchange, and the returned function waits for its
    result. Call that function once, on every rank.

    What is computed between the two calls overlaps with the exchange, and its backward pass with the exchange of
    gradients: autograd runs it after the gradients' exchange has started and before their first use. Not for code
    inside of compiled graphs.
    """
    token, result = _Start.apply(x, group, tuple(sent), tuple(received))
    in_flight = [result]

    def receive() -> Tensor:
        # Of two results, autograd would add the gradients before either has arrived.
        if not in_flight:
            raise RuntimeError(
                "all-to-all: found a result that is received twice; an exchange gives correct gradients once; receive "
                "it once and keep the tensor, or start another exchange"
            )
        return _Finish.apply(token, in_flight.pop(), group, tuple(sent), tuple(received))

    return receive


class _Start(torch.autograd.Function):
    """Returns the result in flight, without a gradient, and a token without content, in whose place the gradients of
    ``x`` arrive: autograd checks their shape against it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, group: Any, sent: tuple[int, ...], received: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        result = _exchange_in_flight(x, group, sent, received)
        ctx.mark_non_differentiable(result)
        ctx.set_materialize_grads(False)
        return x.new_empty(()).expand(x.shape), result

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, None, None, None]:
        return None if grad is None else functional_collectives.wait_tensor(grad), None, None, None


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, token: Tensor, result: Tensor, group: Any, sent: tuple[int, ...], received: tuple[int, ...]
    ) -> Tensor:
        ctx.group, ctx.sent, ctx.received = group, sent, received
        return functional_collectives.wait_tensor(result).detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _exchange_in_flight(grad, ctx.group, ctx.received, ctx.sent), None, None, None, None


def _exchange_in_flight(x: Tensor, group: Any, sent: Sequence[int], received: Sequence[int]) -> Tensor:
    """The tensor that an exchange is still writing: nothing but ``wait_tensor`` may touch it.

    Outside of compiled graphs, functional collectives return it in a wrapper that waits on first use; autograd would
    use the wrapper.
    """
    result = functional_collectives.all_to_all_single(x.contiguous(), list(received), list(sent), group)
    return result.elem if isinstance(result, functional_collectives.AsyncCollectiveTensor) else result


def _listed(sizes: Sequence[int] | None) -> list[int] | None:
    return None if sizes is None else list(sizes)


def wanted_gradients(node: Any) -> list[bool]:
    """For each input of an ``autograd.Function``, whether the running backward pass needs its gradient.

    Call it in ``backward`` with ``ctx``. ``needs_input_grad`` does not depend on which half of a split backward pass is
    running, so a costly function would compute all gradients twice. Parameters must pass through an operation such as
    ``view`` first, because torch does not answer for leaves (2.11 to 2.13). Remove when ``needs_input_grad`` tells,
    as it does in C++ functions.
    """
    return [edge is not None and torch._C._will_engine_execute_node(edge) for edge, _ in node.next_functions]


def _waited(x: Tensor) -> Tensor:
    """A collective's result as a plain tensor of the same graph.

    Outside compiled graphs it is an ``AsyncCollectiveTensor``, which waits on first use. As an input of a compiled
    graph it silently loses its gradient (2.13), so everything computed before the graph gets none. Remove when such
    inputs keep their gradient and late waiting saves time.
    """
    return _Wait.apply(x) if isinstance(x, functional_collectives.AsyncCollectiveTensor) else x


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.trigger_wait().detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def all_gather(x: Tensor, dim: int, group: Any) -> Tensor:
    """``all_gather_with_grad`` without gradients."""
    gather = getattr(functional_collectives, "all_gather_single", None)
    return functional_collectives.wait_tensor(
        (gather or functional_collectives.all_gather_tensor)(x.contiguous(), dim, group)
    )


def all_reduce(x: Tensor, group: Any) -> Tensor:
    """The sum of the ranks' ``x``, without gradients."""
    return functional_collectives.wait_tensor(functional_collectives.all_reduce(x.contiguous(), "sum", group))


def strided_shard_dim(placement: Placement) -> int | None:
    """The tensor dim of a placement that shards after later mesh dims did; ``None`` for any other placement.

    FSDP2 shards the parts that tensor parallelism left, and marks this with ``_StridedShard``. It is not public and,
    since 2.13, not a subclass of ``Shard``. Remove when placements expose their order.
    """
    return placement.dim if isinstance(placement, _StridedShard) else None


def forget_forward_passes(root: FSDPModule) -> None:
    """Make FSDP2 forget forward passes that no backward pass will follow.

    FSDP2 records every forward pass, even without gradients, until a backward pass ends, and prefetches by this record
    (2.11 to 2.13). If ranks ran different numbers of such passes, one would gather weights for an old pass and the
    others would not: a hang. ``reset_iter_state`` of 2.13 also drops gradients that are being reduced. Remove when
    passes without gradients are no longer recorded.
    """
    # The first forward pass creates the list. A rank that only took part in gathers ran none.
    getattr(root._get_fsdp_state()._comm_ctx, "post_forward_order", []).clear()
    for part in root.modules():
        if isinstance(part, FSDPModule):
            for group in _parameter_groups(part._get_fsdp_state()):
                group._post_forward_indices.clear()


def reduce_gradients(root: FSDPModule) -> None:
    """Have FSDP2 reduce accumulated gradients, as it does at the end of a backward pass.

    Needed outside backward passes: a pipeline's micro-batches end stage by stage, and split backward passes run no
    final hook. The methods are private; torch's own pipeline stages call them in the same way (2.11 to 2.13). Remove
    when FSDP2 has a public call for this.
    """
    state = root._get_fsdp_state()
    for part in state._state_ctx.all_states:
        for group in _parameter_groups(part):
            group.post_backward()
    state._root_post_backward_final_callback()


def widen_gradients(root: FSDPModule) -> None:
    """Have FSDP2 move new gradients into the accumulated ones, which have the dtype of reductions.

    FSDP2 does so at the end of a backward pass, but does not notice the second half of a split one. Gradients of
    several micro-batches would then be summed in the compute dtype. Private (2.11 to 2.13). Remove with
    ``stage_backward_weight``.
    """
    for part in root._get_fsdp_state()._state_ctx.all_states:
        for group in _parameter_groups(part):
            for parameter in group.fsdp_params:
                if hasattr(parameter, "_unsharded_param"):
                    parameter.accumulate_unsharded_grad_if_needed()
                    parameter.to_accumulated_grad_if_needed()


def whole_parameters(part: FSDPModule) -> list[torch.nn.Parameter]:
    """The unsharded parameters of a module's own group, which replace the sharded ones while the module runs, and in
    which its graphs end.

    Between passes the module may expose the sharded ones again. Empty before the first pass (2.11 to 2.13). Remove when
    FSDP2 exposes them.
    """
    return [
        sharded._unsharded_param
        for group in _parameter_groups(part._get_fsdp_state())
        for sharded in group.fsdp_params
        if hasattr(sharded, "_unsharded_param")
    ]


def _parameter_groups(state: Any) -> list[Any]:
    # One group per module until 2.12.
    groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
    return [group for group in groups if group is not None]


def ignore_profiler_marks() -> None:
    """Have selective checkpointing ignore the profiler's marks.

    FSDP2's hooks set marks for experts inside a checkpointed block, fewer in one pass than in the other; torch 2.13
    takes this for a different computation. The set of ignored operations is public. Remove when it contains marks.
    """
    profiler = torch.ops.profiler
    SAC_IGNORED_OPS.update(
        {
            profiler._record_function_enter_new.default,
            profiler._record_function_exit._RecordFunction,
        }
    )


def is_profiler_recording() -> bool:
    """Whether torch's profiler records in this process.

    The flag is private in 2.11 to 2.13. Remove when ``record_function`` costs nothing without a profiler.
    """
    return torch.autograd.profiler._is_profiler_enabled


def record_cuda_memory(max_entries: int) -> None:
    """Record the next allocations and frees of the CUDA allocator, at most ``max_entries``, with Python stacks.

    torch's documentation of memory snapshots uses this function and the next two, whose names are private in 2.11 to
    2.13. Call them by public names once there are some.
    """
    torch.cuda.memory._record_memory_history(max_entries=max_entries, stacks="python", clear_history=True)


def stop_recording_cuda_memory() -> None:
    """Stop what ``record_cuda_memory`` started."""
    torch.cuda.memory._record_memory_history(enabled=None)


def dump_cuda_memory(file: str) -> None:
    """Write the CUDA allocator's state and its recorded entries, as pickled Python values."""
    torch.cuda.memory._dump_snapshot(file)


def storage_info(file: str, start: int, size: int) -> Any:
    """The entry of ``.metadata`` by which torch's reader of distributed checkpoints finds a tensor's archive.

    The class is private in 2.11 to 2.13 and part of the format on disk. Remove when torch has a public class for it.
    """
    return _StorageInfo(file, start, size)


def save_without_data(tensor: Tensor, file: Any) -> None:
    """``torch.save`` without the tensor's bytes: ``file.seek(n, 1)`` is called where they belong.

    ``skip_data`` is public, but documented as a prototype (2.11 to 2.13). The caller checks what ``file`` receives.
    """
    with torch.serialization.skip_data():
        torch.save(tensor, file)


def inductor(
    settings: Mapping[str, Any],
    *,
    kept: Callable[[Any], bool] | None = None,
    inner_compile: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Inductor as a backend of ``torch.compile``, with AOTAutograd settings that apply only to graphs of this backend.

    The settings are those of ``torch._functorch.config``, which otherwise apply to the whole process. Marks on nodes,
    as selective checkpointing sets them, determine which results a graph keeps for backward (2.11 to 2.13). Remove when
    the ``options`` of ``torch.compile`` accept both.

    Args:
        settings: such as ``activation_memory_budget``.
        kept: whether the result of an operation is kept for backward; other results may be recomputed.
        inner_compile: replaces Inductor's compilation of each forward and backward graph.
    """

    def compile_graph(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        from torch._functorch import config
        from torch._inductor.compile_fx import compile_fx

        chosen = {} if inner_compile is None else {"inner_compile": inner_compile}
        passes = {} if kept is None else {"joint_custom_post_pass": _keeping(kept)}
        with config.patch(dict(settings)):
            return compile_fx(graph, inputs, config_patches=passes, **chosen)

    return compile_graph


def without_code(name: str, settings: Mapping[str, Any]) -> Callable[..., Any]:
    """A backend of ``torch.compile`` that generates no code, such as ``aot_eager``, with AOTAutograd settings.

    For tests, where it replaces ``inductor``. ``torch._dynamo`` looks backends up by name (2.11 to 2.13).
    """

    def compile_graph(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        from torch._dynamo import lookup_backend
        from torch._functorch import config

        with config.patch(dict(settings)):
            return lookup_backend(name)(graph, inputs)

    return compile_graph


def _keeping(kept: Callable[[Any], bool]) -> Any:
    """A pass over joint graphs that marks results to keep."""
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
    from torch.utils.checkpoint import CheckpointPolicy

    class Keeping(CustomGraphPass):
        def __call__(self, graph: torch.fx.Graph) -> None:
            for node in graph.nodes:
                if isinstance(node.target, torch._ops.OpOverload) and kept(node.target):
                    node.meta["recompute"] = CheckpointPolicy.MUST_SAVE

        def uuid(self) -> Any:  # part of the key under which compiled graphs are cached on disk
            return kept.__qualname__, get_hash_for_files((inspect.getfile(kept), __file__))

    return Keeping()


def is_random(operation: Any) -> bool:
    """Whether an operation draws random numbers. Tags are public, but the meaning of this one is not documented."""
    return torch.Tag.nondeterministic_seeded in operation.tags


def compile_isolated(function: Callable[..., Any], backend: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` for any number of tokens, with graphs that do not count towards other engines' limit.

    ``isolate_recompiles`` exists since 2.13; before, engines share dynamo's limit of graphs per function.
    """
    isolated = "isolate_recompiles" in inspect.signature(torch.compile).parameters
    apart: dict[str, Any] = {"isolate_recompiles": True} if isolated else {}
    return torch.compile(function, backend=backend, dynamic=True, **apart)


def inductor_compile(graph: torch.fx.GraphModule, inputs: Any, **options: Any) -> Any:
    """Inductor's compilation of a graph from AOTAutograd, for use in an ``inner_compile``. See ``inductor``."""
    from torch._inductor.compile_fx import compile_fx_inner

    return compile_fx_inner(graph, inputs, **options)


def size_hint(size: int | torch.SymInt) -> int:
    """The value of a size while its graph was traced (``SymNode.hint``; 2.11 to 2.13)."""
    return size if isinstance(size, int) else int(size.node.hint)


def without_storage() -> Any:
    """A context in which tensors have shapes, dtypes and a device, but no values: ``FakeTensorMode``.

    torch.compile traces with it, so unlike on the meta device, code that inspects values has a way to handle this. Its
    module is private in 2.11 to 2.13, and errors are logged with a stack as well as raised. Remove when a public one
    exists.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def with_storage() -> Any:
    """Inside ``without_storage``, a context in which tensors have values again. See there."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    return unset_fake_temporarily()


def copy_all(destinations: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """``destination.copy_(source)`` for each pair, in one call and with casts: ``torch._foreach_copy_``.

    The optimizers of torch use it in 2.11 to 2.13; it has no public name. Remove when it has one.
    """
    if destinations:  # torch refuses empty lists
        torch._foreach_copy_(list(destinations), list(sources))


def share_cuda_memory(memory: Tensor) -> tuple[Any, ...]:
    """A handle of a CUDA tensor's storage for another process: device index, memory handle, size, offset, then the
    reference counter's handle and offset, and an event's handle with its flag. Bytes, numbers and a flag.

    ``torch.multiprocessing`` makes its reductions of these (``UntypedStorage._share_cuda_``, 2.11 to 2.13), but sends
    them as pickles. Remove when torch exports handles publicly.
    """
    return tuple(memory.untyped_storage()._share_cuda_())


def open_cuda_memory(device: int, parts: Sequence[Any]) -> Tensor:
    """The memory of a handle from ``share_cuda_memory``, uint8 [n], on this process's ``device``. See there."""
    storage = torch.UntypedStorage._new_shared_cuda(device, *parts[1:])
    return torch.empty(0, dtype=torch.uint8, device=f"cuda:{device}").set_(storage)
