"""How the context ranks of an engine share attention, decided from the model, the layout and the machines."""

from __future__ import annotations

import math
import socket
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from torch import nn

from archon_core.contracts.decisions import Decision
from archon_core.contracts.module import accepts_any_order
from archon_core.layout import ParallelDims
from archon_core.models.name_pattern import matches_any
from archon_core.models.parallel_plan import ParallelPlan
from archon_core.ranks.environment import rank_environment
from archon_core.ranks.ranks import Ranks
from archon_engine.options import context_style
from archon_engine.options.archon import ArchonEngineConfig
from archon_engine.options.context_style import ContextSizes, ContextSplit, split_context


@dataclass(frozen=True)
class ContextPlan:
    """How context ranks share attention.

    Attributes:
        split: over which ranks heads are exchanged, and over which keys and values are gathered.
        in_order: whether ranks must hold parts of a pack in its order, because the model has recurrent layers.
        sizes: the sizes that decided.
    """

    split: ContextSplit = field(default_factory=ContextSplit)
    in_order: bool = False
    sizes: ContextSizes = field(default_factory=ContextSizes)


def plan_context(
    config: ArchonEngineConfig, module: nn.Module, plan: ParallelPlan, dims: ParallelDims, *, role: str
) -> ContextPlan:
    """The plan for a whole module. Collective in a run on several machines.

    Raises:
        ConfigError: the style does not fit the number of heads.
    """
    neighbours = neighbours_per_machine(_machines()) if dims.cp > 1 else None
    sizes = ContextSizes(dims.cp, dims.tp, plan.heads.query if plan.heads else 0, neighbours)
    cores = [part for name, part in module.named_modules() if matches_any(plan.attention, name)]
    split = split_context(config.archon.cp_style, sizes, option=f"{role}.archon.cp_style")
    return ContextPlan(split, not all(accepts_any_order(core) for core in cores), sizes)


def neighbours_per_machine(machines: Sequence[Hashable]) -> int | None:
    """The largest size of groups of neighbouring ranks that lie within a machine; ``None`` if all ranks are on one.

    Args:
        machines: the machine of each rank of the role, in rank order. Ranks of other roles on it do not count.

    >>> neighbours_per_machine("aaaabbbbbbbb"), neighbours_per_machine("abab"), neighbours_per_machine("aaaa")
    (4, 1, None)
    """
    runs = [len(list(run)) for _, run in groupby(machines)]
    return math.gcd(*runs) if len(runs) > 1 else None


def _machines() -> list[tuple[str, int]]:
    """The machine of each rank of the role. Collective in a run on several machines."""
    launched = rank_environment()
    if launched is None or launched.local_world_size == launched.world_size:
        return []
    # Host names may repeat, as those of containers do. Launchers number the ranks of a machine one after the other.
    return Ranks.of_process_group().gather((socket.gethostname(), launched.rank - launched.local_rank))


def context_decisions(plan: ContextPlan, config: ArchonEngineConfig, *, role: str) -> list[Decision]:
    """Decisions about the style, and about the padding that it and the layout need."""
    return context_style.context_decisions(
        config.archon.cp_style, config.batch_align_to, plan.sizes, plan.split, in_order=plan.in_order, role=role
    )
