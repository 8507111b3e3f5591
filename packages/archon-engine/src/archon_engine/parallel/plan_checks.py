"""Checks a model's parallel plan against its module and the layout, before anything is sharded.

``sharded_extents`` provides the sizes for ``archon_core.layout.model_sizes``, which checks that axes divide them. The
other functions raise for axes that a plan rules out, and for plans that do not describe the module completely.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from archon_core.contracts.module import RowProjection, TensorParallelLayer, accepts_sequence_shards
from archon_core.errors import LayoutError, ModelError
from archon_core.layout import Layout
from archon_core.layout.model_sizes import ShardedExtents
from archon_core.models.name_pattern import matches, matches_any
from archon_core.models.parallel_plan import ParallelPlan, ancestors
from archon_engine.nn.attention import PackedAttention
from archon_engine.parallel.tensor import SHARDED_DIM


def sharded_extents(module: nn.Module, plan: ParallelPlan) -> ShardedExtents:
    """The sizes in a whole module, possibly on the meta device, that a layout must divide."""
    heads = {} if plan.heads is None else {"attention heads": plan.heads.query}
    if plan.heads is not None and not plan.key_value:
        heads["key and value heads"] = plan.heads.key_value
    equal, unequal = {}, {}
    for what, extent, is_equal in _cut_by_tensor_ranks(module, plan):
        (equal if is_equal else unequal)[what] = extent
    return ShardedExtents({**heads, **plan.other_heads, **equal}, unequal)


def check_refusals(plan: ParallelPlan, layout: Layout, *, option: str) -> None:
    """Raise LayoutError for axes that the plan rules out, with its reason."""
    for letter, reason in plan.refusals.items():
        size = layout.dims[letter]
        if size > 1:
            raise LayoutError(f"{option} {str(layout)!r}: found {letter}{size}; {reason}")


def check_tensor_plan(module: nn.Module, plan: ParallelPlan) -> None:
    """Check that in a whole model all sharded projections lie inside tensor regions, and everything else outside;
    otherwise sums over ranks would be wrong.

    Raises:
        ModelError: the plan is wrong or incomplete.
    """
    plan.validate(module)
    problems = []
    for name, owner in module.named_modules():
        if not any(True for _ in owner.parameters(recurse=False)):
            continue
        role = plan.role_of(name)
        around = ancestors(name)
        in_region = any(matches_any(plan.tensor_regions, part) for part in around)
        if role == "expert":
            if not any(matches_any(plan.experts, part) for part in around):
                problems.append(f"{name}: expert weights outside every block of `experts`")
        elif in_region != (role in ("column", "row", "head_norm", "replicated")):
            where = "in a tensor region" if in_region else "outside every tensor region"
            problems.append(f"{name}: role {role!r} {where}")
        if matches_any(plan.key_value, name) and role != "column":
            problems.append(f"{name}: role {role!r}, but `key_value` names it; its outputs must be sharded (column)")
        if role == "vocabulary" and not isinstance(owner, TensorParallelLayer):
            problems.append(
                f"{name}: {type(owner).__name__} cannot hold part of a vocabulary; use a layer of archon_engine.nn"
            )
        if role == "row" and not isinstance(owner, RowProjection):
            problems.append(
                f"{name}: {type(owner).__name__} sums no partial outputs; use archon_engine.nn.linear.Linear"
            )
    if problems:
        raise ModelError(
            "the parallel plan does not support tensor parallelism; correct it:\n  " + "\n  ".join(problems)
        )


def check_context_plan(module: nn.Module, plan: ParallelPlan) -> None:
    """Check that every attention module of ``plan`` exchanges data between context ranks, as ``PackedAttention`` does.

    Raises:
        ModelError: the plan names no attention although the model has heads, names a module that needs whole
            sequences, or omits a ``PackedAttention`` of the model.
    """
    named = {name: part for name, part in module.named_modules() if matches_any(plan.attention, name)}
    problems = [
        f"{name}: {type(part).__name__} needs whole sequences; use archon_engine.nn.attention.PackedAttention"
        for name, part in named.items()
        if not accepts_sequence_shards(part)
    ]
    problems += [
        f"{name}: attention that the plan's `attention` does not name"
        for name, part in module.named_modules()
        if isinstance(part, PackedAttention) and name not in named
    ]
    if plan.heads is not None and not named:
        problems.append("`attention` names no module, although the model has attention heads")
    if problems:
        raise ModelError(
            "the parallel plan does not support context parallelism; correct it:\n  " + "\n  ".join(problems)
        )


def _cut_by_tensor_ranks(module: nn.Module, plan: ParallelPlan) -> Iterator[tuple[str, int, bool]]:
    """Yield the weights that tensor parallelism shards, once per kind: description, extent, and whether parts must be
    equal. Parts of the vocabulary, and of projections to key heads that ranks exchange, may differ."""
    for pattern, role in plan.roles.items():
        for name, owner in module.named_modules():
            dim = SHARDED_DIM.get((role, "weight"))
            if dim is not None and matches(pattern, name):
                is_unequal = role == "vocabulary" or matches_any(plan.key_value, name)
                yield f"{pattern} {'outputs' if dim == 0 else 'inputs'}", owner.weight.shape[dim], not is_unequal
                break
