"""Every private or renamed torch API that Archon uses, in one place.

Each entry says on which versions it was seen, where upstream stands, and when it can go.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed._functional_collectives as functional_collectives
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.fsdp import FSDPModule

# The two halves of a backward pass, as torch's own pipeline stages compute them: private, unchanged in 2.11 to 2.13. To
# be imported from elsewhere once they are public.
from torch.distributed.pipelining._backward import stage_backward_input as stage_backward_input
from torch.distributed.pipelining._backward import stage_backward_weight as stage_backward_weight
from torch.distributed.tensor.placement_types import Placement, _StridedShard

# What watches every operation, and what finds the tensors in any structure: used by torch's own documentation, and in
# modules with private names in 2.11 to 2.13. To be imported from elsewhere once they have public ones.
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils.checkpoint import SAC_IGNORED_OPS


def all_gather_with_grad(x: Tensor, dim: int, group: Any) -> Tensor:
    """The ranks' ``x`` one after the other along ``dim``; backward sums gradients and gives each rank its part.

    Functional collectives are what torch.compile understands; their module is private in 2.11 to 2.13. 2.13 renamed
    this function and warns about the old name. Remove when a public functional API exists (pytorch/pytorch RFC 93173).
    """
    gather = getattr(functional_collectives, "all_gather_single_autograd", None)
    return _waited((gather or functional_collectives.all_gather_tensor_autograd)(x, dim, group))


def reduce_scatter_with_grad(x: Tensor, dim: int, group: Any) -> Tensor:
    """Each rank's part along ``dim`` of the sum of the ranks' ``x``; backward gathers. See ``all_gather_with_grad``."""
    scatter = getattr(functional_collectives, "reduce_scatter_single_autograd", None)
    return _waited((scatter or functional_collectives.reduce_scatter_tensor_autograd)(x, "sum", dim, group))


def all_to_all_with_grad(
    x: Tensor, group: Any, sent: Sequence[int] | None = None, received: Sequence[int] | None = None
) -> Tensor:
    """Part i of ``x`` along dim 0 to rank i; parts come in order of ranks. Backward sends gradients back.

    See ``all_gather_with_grad``; this name has not changed.

    Args:
        sent: rows of each part, which may be none; ``None`` for equal parts.
        received: rows that come from each rank.
    """
    exchange = functional_collectives.all_to_all_single_autograd
    return _waited(exchange(x.contiguous(), _listed(received), _listed(sent), group))


def all_to_all(
    x: Tensor, group: Any, sent: Sequence[int] | None = None, received: Sequence[int] | None = None
) -> Tensor:
    """``all_to_all_with_grad`` without gradients."""
    exchange = functional_collectives.all_to_all_single
    return functional_collectives.wait_tensor(exchange(x.contiguous(), _listed(received), _listed(sent), group))


def _listed(sizes: Sequence[int] | None) -> list[int] | None:
    return None if sizes is None else list(sizes)


def wanted_gradients(node: Any) -> list[bool]:
    """Of each tensor that an ``autograd.Function`` was given, whether the running backward pass needs its gradient.

    Called in ``backward`` with its ``ctx``. ``needs_input_grad`` does not know which half of a split backward pass it
    is in, so that costly functions would compute the gradients of both twice. Parameters must have gone through an
    operation, such as ``view``, before: torch does not tell of leaves (2.11 to 2.13). Remove when ``needs_input_grad``
    tells, as it does of functions that are written in C++.
    """
    return [edge is not None and torch._C._will_engine_execute_node(edge) for edge, _ in node.next_functions]


def _waited(x: Tensor) -> Tensor:
    """A collective's result as a plain tensor of the same graph.

    Outside of a compiled graph it is an ``AsyncCollectiveTensor``, which waits when it is first used. As an input of a
    compiled graph it loses its gradient without a word (2.13): what is computed before the graph is not trained.
    Remove when such inputs keep their gradient, and waiting late is worth something.
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
    """The tensor dim of a shard that was cut after those of later mesh dims; ``None`` for any other placement.

    FSDP2 cuts what tensor parallelism left, and marks that with ``_StridedShard``, which is neither public nor, since
    2.13, a subclass of ``Shard``. Remove when placements can be asked for their order.
    """
    return placement.dim if isinstance(placement, _StridedShard) else None


def forget_forward_passes(root: FSDPModule) -> None:
    """Make FSDP2 forget passes that no backward pass will follow.

    It records every forward pass, also without gradients, until a backward pass ends, and prefetches by that record
    (2.11 to 2.13). After ranks have run different numbers of such passes, one would gather weights for a pass of long
    ago and the others would not: a hang. 2.13 has ``reset_iter_state``, which also throws away gradients on their way.
    Remove when passes without gradients are not recorded.
    """
    # The first forward pass makes the list; a rank that has only lent its weights to others ran none.
    getattr(root._get_fsdp_state()._comm_ctx, "post_forward_order", []).clear()
    for part in root.modules():
        if isinstance(part, FSDPModule):
            for group in _parameter_groups(part._get_fsdp_state()):
                group._post_forward_indices.clear()


def reduce_gradients(root: FSDPModule) -> None:
    """Have FSDP2 reduce the gradients that were added up without being reduced, as at the end of a backward pass.

    Outside of one: a pipeline's micro-batches end stage by stage, and split backward passes run no hook at their end.
    The state's methods are private; torch's own pipeline stages call them like this (2.11 to 2.13). Remove when
    FSDP2 can be asked to reduce.
    """
    state = root._get_fsdp_state()
    for part in state._state_ctx.all_states:
        for group in _parameter_groups(part):
            group.post_backward()
    state._root_post_backward_final_callback()


def widen_gradients(root: FSDPModule) -> None:
    """Have FSDP2 add gradients that are there into those that it keeps in the type of its reductions.

    At the end of a backward pass it does so; the second half of a split one it does not see, and gradients of several
    would be summed in the type of computation. Private (2.11 to 2.13). Remove with ``stage_backward_weight``.
    """
    for part in root._get_fsdp_state()._state_ctx.all_states:
        for group in _parameter_groups(part):
            for parameter in group.fsdp_params:
                if hasattr(parameter, "_unsharded_param"):
                    parameter.accumulate_unsharded_grad_if_needed()
                    parameter.to_accumulated_grad_if_needed()


def whole_parameters(root: FSDPModule) -> list[torch.nn.Parameter]:
    """The parameters that FSDP2 puts in the place of sharded ones while a module runs: those that its graphs lead to.

    Between passes the module may show the sharded ones again. There are none before the first pass (2.11 to 2.13).
    Remove when FSDP2 gives them.
    """
    return [
        sharded._unsharded_param
        for part in root._get_fsdp_state()._state_ctx.all_states
        for group in _parameter_groups(part)
        for sharded in group.fsdp_params
        if hasattr(sharded, "_unsharded_param")
    ]


def _parameter_groups(state: Any) -> list[Any]:
    # One group per module until 2.12.
    groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
    return [group for group in groups if group is not None]


def ignore_profiler_marks() -> None:
    """Have selective checkpointing take no notice of the profiler's marks.

    FSDP2's hooks set them, for experts inside of a checkpointed block, and fewer in one pass than in the other; 2.13
    takes that for another computation. The set of ignored operations is public. Remove when marks are in it.
    """
    profiler = torch.ops.profiler
    SAC_IGNORED_OPS.update(
        {
            profiler._record_function_enter_new.default,
            profiler._record_function_exit._RecordFunction,
        }
    )


def storage_info(file: str, start: int, size: int) -> Any:
    """Where torch's own reader of distributed checkpoints finds an archive: what ``.metadata`` holds for each tensor.

    The class is private in 2.11 to 2.13 and part of the format on disk. Remove when a writer can be told where its
    data go.
    """
    return _StorageInfo(file, start, size)


def save_around(tensor: Tensor, file: Any) -> None:
    """``torch.save`` without the tensor's bytes: ``file.seek(n, 1)`` is called where they belong.

    ``skip_data`` is public and called a prototype (2.11 to 2.13). What ``file`` sees is checked by the caller.
    """
    with torch.serialization.skip_data():
        torch.save(tensor, file)


def inductor(
    settings: Mapping[str, Any],
    *,
    kept: Callable[[Any], bool] | None = None,
    inner_compile: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Inductor as a backend of ``torch.compile``, with settings of AOTAutograd for the graphs compiled by it alone.

    The settings are those of ``torch._functorch.config``, which ``torch.compile`` takes for the whole process only;
    what a graph keeps for backward is said by marks on its nodes, as selective checkpointing makes them (2.11 to 2.13).
    Remove when its ``options`` take both.

    Args:
        settings: such as ``activation_memory_budget``.
        kept: tells by its operation whether a result is kept for backward; what is not may be computed again.
        inner_compile: in place of Inductor's own compilation of each forward and backward graph.
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
    """A backend of ``torch.compile`` that generates no code, such as ``aot_eager``, with settings of AOTAutograd.

    Backends are looked up by ``torch._dynamo`` (2.11 to 2.13); for tests, in which it takes the place of ``inductor``.
    """

    def compile_graph(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        from torch._dynamo import lookup_backend
        from torch._functorch import config

        with config.patch(dict(settings)):
            return lookup_backend(name)(graph, inputs)

    return compile_graph


def _keeping(kept: Callable[[Any], bool]) -> Any:
    """A pass over joint graphs that marks the results to be kept."""
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
    """Whether an operation draws random numbers. Tags are public, this one's meaning is not documented."""
    return torch.Tag.nondeterministic_seeded in operation.tags


def compile_apart(function: Callable[..., Any], backend: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` for any number of tokens, whose graphs do not count towards the limit of other engines'.

    ``isolate_recompiles`` exists since 2.13; before, dynamo's limit of graphs per function is shared.
    """
    isolated = "isolate_recompiles" in inspect.signature(torch.compile).parameters
    apart: dict[str, Any] = {"isolate_recompiles": True} if isolated else {}
    return torch.compile(function, backend=backend, dynamic=True, **apart)


def compile_graph_alone(graph: torch.fx.GraphModule, inputs: Any, **options: Any) -> Any:
    """What Inductor does with a graph that AOTAutograd has made; to be called by an ``inner_compile``. See above."""
    from torch._inductor.compile_fx import compile_fx_inner

    return compile_fx_inner(graph, inputs, **options)


def size_hint(size: int | torch.SymInt) -> int:
    """A size as it was when a graph was traced (``SymNode.hint``; 2.11 to 2.13)."""
    return size if isinstance(size, int) else int(size.node.hint)


def without_storage() -> Any:
    """A context in which tensors have shapes, types and a device, and no values: ``FakeTensorMode``.

    Unlike the meta device it is what torch.compile traces with, so code that looks at values knows how to go on
    without. Its module is private in 2.11 to 2.13, and what cannot run is logged with a stack as well as raised.
    Remove when a public one exists.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def with_storage() -> Any:
    """Inside of ``without_storage``, a context in which tensors have values again. See there."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    return unset_fake_temporarily()
