"""Applies FSDP2 to any module with a parallel plan.

Every block is a group, as is every unit before the blocks; the units after them form one group. Losses are already
divided by global weights, so groups sum gradients without dividing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, Shard

from archon_core.models.name_pattern import matches_any
from archon_core.models.parallel_plan import ParallelPlan, ancestors
from archon_engine.compat import (
    forget_forward_passes,
    reduce_gradients,
    whole_parameters,
    widen_gradients,
)
from archon_engine.parallel.units import blocks_of, units_around_blocks


@dataclass(frozen=True)
class FsdpGroups:
    """The FSDP2 groups of a module.

    Attributes:
        roots: the module, or every pipeline stage on this rank.
        resharding: modules whose unsharded weights are freed between forward and backward.
    """

    roots: tuple[FSDPModule, ...]
    resharding: tuple[FSDPModule, ...]

    @classmethod
    def joined(cls, groups: Iterable[FsdpGroups]) -> FsdpGroups:
        """The groups of several modules, as one object."""
        parts = tuple(groups)
        return cls(
            tuple(root for part in parts for root in part.roots),
            tuple(module for part in parts for module in part.resharding),
        )

    @property
    def frees_weights(self) -> bool:
        """Whether unsharded weights of some module are freed between forward and backward."""
        return bool(self.resharding)

    @property
    def whole_parameters(self) -> list[nn.Parameter]:
        """The unsharded parameters, in which autograd graphs end. They exist from the first forward pass on."""
        # Modules that share a group, such as the last norm and the head, name the same parameters.
        found = (parameter for part in self._parts for parameter in whole_parameters(part))
        return [*dict.fromkeys(found)]

    def weights_in_turn(self) -> Iterator[list[nn.Parameter]]:
        """The unsharded parameters of one unit after the other, from the last unit to the first.

        When the caller asks for the next unit, the weights of this one are freed if forward passes free them too:
        recomputation may have gathered them in the meantime.
        """
        for unit in (unit for root in self.roots for unit in reversed(_units(root))):
            yield [parameter for part in unit for parameter in whole_parameters(part)]
            for part in unit:
                if part in self.resharding:
                    part.reshard()

    @property
    def _parts(self) -> Iterator[FSDPModule]:
        return (part for root in self.roots for part in root.modules() if isinstance(part, FSDPModule))

    def end_forward_passes(self) -> None:
        """Free the unsharded weights and records left by forward passes without a backward pass.

        FSDP2 frees the weights of its last groups in backward, and prefetches by its record of forward passes, so both
        would otherwise remain for the next step.
        """
        for part in self._parts:
            part.reshard()
        for root in self.roots:
            forget_forward_passes(root)

    def accumulate(self) -> None:
        """From now on, backward passes accumulate unsharded gradients without reducing them.

        Unsharded weights are freed after backward only if they are also freed after forward passes.
        """
        for root in self.roots:
            # At the end of the last backward pass FSDP2 waits for reductions and clears its records for prefetching.
            root.set_is_last_backward(False)
            root.set_reshard_after_backward(bool(self.resharding))
            root.set_requires_gradient_sync(False)

    def widen(self) -> None:
        """Move the gradients of the second half of a split backward pass into the dtype of reductions."""
        for root in self.roots:
            widen_gradients(root)

    def reduce(self, *, free: bool = True) -> None:
        """Sum the gradients accumulated since ``accumulate`` over ranks, into sharded gradients. Collective.

        Args:
            free: free the unsharded weights afterwards.
        """
        for root in self.roots:
            root.set_is_last_backward(True)
            root.set_reshard_after_backward(free)
            root.set_requires_gradient_sync(True)
            reduce_gradients(root)

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Gather all weights inside the context, where forward passes need no other data rank.

        Entering is collective. Weights stay sharded over tensor ranks.
        """
        for part in self._parts:
            part.unshard()
            # Otherwise the first forward pass would free the weights and the second gather them: a collective in which
            # ranks that decode longer than others would wait forever.
            part.set_reshard_after_forward(False, recurse=False)
        try:
            yield
        finally:
            for part in self.resharding:
                part.set_reshard_after_forward(True, recurse=False)
            self.end_forward_passes()


def apply_fsdp(
    module: nn.Module,
    plan: ParallelPlan,
    mesh: DeviceMesh,
    *,
    compute_dtype: torch.dtype,
    reduce_dtype: torch.dtype,
    reshard_after_forward: bool,
    reshard_last: bool = False,
    offload: bool = False,
    expert_mesh: DeviceMesh | None = None,
    is_pipelined: bool = False,
) -> FsdpGroups:
    """Shard the parameters of ``module`` over ``mesh``, in place.

    Args:
        module: a model or a pipeline stage, on the meta device.
        plan: names the blocks and the units before and after them.
        mesh: the ranks that share the parameters; two axes replicate over the first.
        compute_dtype: the type that parameters are cast to for forward and backward; the shards keep their own.
        reduce_dtype: the type in which gradients are summed over ranks.
        reshard_after_forward: free whole weights between forward and backward.
        reshard_last: also free those of the last units and of shared parameters, with which backward begins.
        offload: keep parameters and gradients in host memory; the module must be materialised there.
        expert_mesh: the ranks that share the same experts; other ranks of ``mesh`` hold other experts.
        is_pipelined: whether forward passes of later micro-batches come before backward passes of earlier ones.
    """
    # Inputs keep their dtype: the model chooses that of rotary angles, for instance.
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=reduce_dtype, cast_forward_inputs=False)
    # Copies to a CUDA device overlap with computation only if they come from pinned memory.
    offloading = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offload else OffloadPolicy()

    def shard(parts: nn.Module | list[nn.Module], *, reshard: bool) -> None:
        fully_shard(parts, mesh=mesh, mp_policy=policy, offload_policy=offloading, reshard_after_forward=reshard)

    # From the inside out: a module's group takes the parameters that no inner group has taken. So experts come before
    # the blocks around them, and the root comes last.
    experts = [] if expert_mesh is None else expert_modules(module, plan)
    for part in experts:
        place = partial(_shard_evenly, size=expert_mesh.size(-1))
        fully_shard(
            part,
            mesh=expert_mesh,
            mp_policy=policy,
            offload_policy=offloading,
            reshard_after_forward=reshard_after_forward,
            shard_placement_fn=place,
        )
    early, last = _groups(module, plan)
    for part in early:
        shard(part, reshard=reshard_after_forward)
    if last:
        # Backward begins with these: freed after forward, they would be gathered again at once.
        shard(last, reshard=reshard_last)
    shard(module, reshard=reshard_last)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            # With any other factor gloo cannot reduce, and a group of one rank would divide twice.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
    if is_pipelined:
        _prefetch_in_order(module, early, last, experts)
    resharding = [*([*experts, *early] if reshard_after_forward else []), *([*last, module] if reshard_last else [])]
    return FsdpGroups((module,), tuple(resharding))


def expert_modules(module: nn.Module, plan: ParallelPlan) -> list[nn.Module]:
    """The modules that hold stacked expert weights. Adapters inside one belong to it."""
    patterns = [pattern for pattern, role in plan.roles.items() if role == "expert"]
    return [
        part
        for name, part in module.named_modules()
        if matches_any(patterns, name) and not any(matches_any(patterns, outer) for outer in ancestors(name)[:-1])
    ]


def even_dim(parameter: nn.Parameter, size: int) -> int | None:
    """The first dim of this rank's part of a parameter that ``size`` divides; ``None`` if there is none."""
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return next((dim for dim, extent in enumerate(local.shape) if extent % size == 0), None)


def _prefetch_in_order(
    root: FSDPModule, early: list[FSDPModule], last: list[FSDPModule], experts: list[FSDPModule]
) -> None:
    """Have the backward pass of each unit gather its experts and the unit before it.

    By default FSDP2 gathers what comes before in its record of forward passes. In a pipeline this may be a unit of
    another micro-batch, whose weights nobody needs then.
    """
    # A list cannot be empty, which means the default; a module that names itself gathers nothing, as it is whole then.
    for part in (root, *experts):
        part.set_modules_to_backward_prefetch([part])
    before: list[FSDPModule] = []
    for unit in (*early, *last[:1]):  # the last units are one group, for which one of them speaks
        inside = [part for part in experts if any(part is inner for inner in unit.modules())]
        unit.set_modules_to_backward_prefetch([*inside, *before] or [unit])
        before = [unit]


def _units(root: FSDPModule) -> list[list[FSDPModule]]:
    """The root, then each FSDP2 module that lies in no other one but the root, with those inside it (experts)."""
    units: dict[str, list[FSDPModule]] = {}
    for name, part in root.named_modules():
        if isinstance(part, FSDPModule):
            outer = next((outer for outer in units if outer and name.startswith(f"{outer}.")), name)
            units.setdefault(outer, []).append(part)
    return list(units.values())


def _shard_evenly(parameter: nn.Parameter, *, size: int) -> Shard:
    """Shard along the first dim that ``size`` divides, else along dim 0.

    If the number of experts is small or odd, sharding dim 0 would leave ranks without weights, although the weights of
    each expert can be divided.
    """
    return Shard(even_dim(parameter, size) or 0)


def _groups(module: nn.Module, plan: ParallelPlan) -> tuple[list[nn.Module], list[nn.Module]]:
    """Units before the blocks and the blocks, one group each; and the units after the blocks, one group together.

    Units that share a parameter, such as a tied embedding and head, are in neither. A parameter belongs to one group,
    which must be gathered while either unit runs; only the root's group is gathered for the whole pass.
    """
    before, after = units_around_blocks(module, plan)
    users = Counter(parameter for part in (*before, *after) for parameter in part.parameters())
    early, last = (
        [part for part in parts if all(users[parameter] == 1 for parameter in part.parameters())]
        for parts in (before, after)
    )
    return [*early, *(block for _, block in blocks_of(module, plan))], last
