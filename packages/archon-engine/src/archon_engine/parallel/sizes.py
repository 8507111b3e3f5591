"""Which tensor and context sizes a model allows: pure arithmetic over its extents, the same before and during a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from archon_core.errors import LayoutError
from archon_core.layout import Layout
from archon_core.models.parallel_plan import ParallelPlan, matches
from archon_engine.parallel.tensor import SHARDED_DIM


@dataclass(frozen=True)
class ShardedExtents:
    """What layouts cut.

    Attributes:
        by_tensor_ranks: what tensor parallelism cuts -> its extent.
        query_heads: what context parallelism cuts, beside tokens, after tensor parallelism did; 0 for no attention.
    """

    by_tensor_ranks: Mapping[str, int] = field(default_factory=dict)
    query_heads: int = 0

    def allows_tensor(self, size: int) -> bool:
        """Whether every extent can be cut by ``size`` tensor ranks."""
        return all(extent % size == 0 for extent in self.by_tensor_ranks.values())

    def allows_context(self, size: int, tensor: int) -> bool:
        """Whether ``size`` context ranks can share the heads of each of ``tensor`` tensor ranks."""
        return self.query_heads % (size * tensor) == 0


def sharded_extents(module: nn.Module, plan: ParallelPlan) -> ShardedExtents:
    """The extents of a whole module, which may be on the meta device."""
    return ShardedExtents(dict(_cut_by_tensor_ranks(module, plan)), plan.heads.query if plan.heads else 0)


def check_refusals(plan: ParallelPlan, layout: Layout, *, option: str) -> None:
    """Refuse axes that the plan says this model cannot be cut along. Raises LayoutError with its reason."""
    for letter, reason in plan.refusals.items():
        size = layout.dims[letter]
        if size > 1:
            raise LayoutError(f"{option} {str(layout)!r}: found {letter}{size}; {reason}")


def check_sizes(extents: ShardedExtents, layout: Layout, *, option: str) -> None:
    """Refuse tensor and context sizes that do not divide what they cut.

    Raises:
        LayoutError: naming what does not divide, and the largest size that does.
    """
    tensor, context = layout.dims["t"], layout.dims["c"]
    where = f"{option} {str(layout)!r}"
    if not extents.allows_tensor(tensor):
        broken = [f"{what} ({n})" for what, n in extents.by_tensor_ranks.items() if n % tensor]
        fix = _largest("t", tensor, extents.allows_tensor)
        raise LayoutError(f"{where}: found t{tensor}; it must divide the model's {', '.join(broken)}; {fix}")
    if not extents.allows_context(context, tensor):
        heads = f"{extents.query_heads} attention heads"
        if tensor > 1:
            heads += f", of which each of {tensor} tensor ranks has {extents.query_heads // tensor}"
        fix = _largest("c", context, lambda size: extents.allows_context(size, tensor))
        raise LayoutError(
            f"{where}: found c{context}; context ranks share attention heads, so it must divide the model's {heads}; "
            f"{fix}"
        )


def _largest(letter: str, size: int, works: Callable[[int], bool]) -> str:
    largest = max(smaller for smaller in range(1, size) if works(smaller))
    if largest == 1:
        return f"no smaller one does; leave {letter} out"
    return f"the largest {letter} below {size} that works is {letter}{largest}"


def _cut_by_tensor_ranks(module: nn.Module, plan: ParallelPlan) -> Iterator[tuple[str, int]]:
    """What tensor parallelism cuts, described once per kind, with its extent."""
    if plan.heads is not None:
        yield "attention heads", plan.heads.query
        yield "key and value heads", plan.heads.key_value
    for pattern, role in plan.roles.items():
        for name, owner in module.named_modules():
            dim = SHARDED_DIM.get((role, "weight"))
            if dim is not None and matches(pattern, name):
                yield f"{pattern} {'outputs' if dim == 0 else 'inputs'}", owner.weight.shape[dim]
                break
