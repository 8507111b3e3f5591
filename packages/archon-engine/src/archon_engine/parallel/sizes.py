"""What tensor and context parallelism cut of a module, for ``archon_core.layout.model_sizes`` to look at."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from archon_core.errors import LayoutError
from archon_core.layout import Layout
from archon_core.layout.model_sizes import ShardedExtents
from archon_core.models.parallel_plan import ParallelPlan, matches
from archon_engine.parallel.tensor import SHARDED_DIM


def sharded_extents(module: nn.Module, plan: ParallelPlan) -> ShardedExtents:
    """The extents of a whole module, which may be on the meta device."""
    heads = {} if plan.heads is None else {"attention heads": plan.heads.query}
    if plan.heads is not None and not plan.key_value:
        heads["key and value heads"] = plan.heads.key_value
    equal, unequal = {}, {}
    for what, extent, is_equal in _cut_by_tensor_ranks(module, plan):
        (equal if is_equal else unequal)[what] = extent
    return ShardedExtents({**heads, **equal}, plan.heads.query if plan.heads else 0, unequal)


def check_refusals(plan: ParallelPlan, layout: Layout, *, option: str) -> None:
    """Refuse axes that the plan says this model cannot be cut along. Raises LayoutError with its reason."""
    for letter, reason in plan.refusals.items():
        size = layout.dims[letter]
        if size > 1:
            raise LayoutError(f"{option} {str(layout)!r}: found {letter}{size}; {reason}")


def _cut_by_tensor_ranks(module: nn.Module, plan: ParallelPlan) -> Iterator[tuple[str, int, bool]]:
    """The weights that tensor parallelism cuts, described once per kind, with the extent and whether parts must be
    equal: those of the vocabulary need not be, nor those of projections to key heads that ranks exchange."""
    for pattern, role in plan.roles.items():
        for name, owner in module.named_modules():
            dim = SHARDED_DIM.get((role, "weight"))
            if dim is not None and matches(pattern, name):
                is_unequal = role == "vocabulary" or any(matches(heads, name) for heads in plan.key_value)
                yield f"{pattern} {'outputs' if dim == 0 else 'inputs'}", owner.weight.shape[dim], not is_unequal
                break
