"""How the context ranks of an engine share attention, decided from the model, the layout and the machines."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import nn

from archon_core.contracts.decisions import Decision
from archon_core.contracts.module import accepts_any_order
from archon_core.layout import ParallelDims
from archon_core.models.name_pattern import matches_any
from archon_core.models.parallel_plan import ParallelPlan
from archon_core.ranks.environment import rank_environment
from archon_core.ranks.ranks import Ranks
from archon_engine.options.archon import ArchonEngineConfig
from archon_engine.options.combinations import shown
from archon_engine.options.context_style import (
    ContextSizes,
    ContextSplit,
    split_context,
    style_decisions,
)


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
    per_node = _ranks_per_node() if dims.cp > 1 else None
    sizes = ContextSizes(dims.cp, dims.tp, plan.heads.query if plan.heads else 0, per_node)
    cores = [part for name, part in module.named_modules() if matches_any(plan.attention, name)]
    split = split_context(config.archon.cp_style, sizes, option=f"{role}.archon.cp_style")
    return ContextPlan(split, not all(accepts_any_order(core) for core in cores), sizes)


def _ranks_per_node() -> int | None:
    launched = rank_environment()
    if launched is None or launched.local_world_size == launched.world_size:
        return None
    # Ranks must agree. On machines with unequal numbers of ranks, groups of this size lie within one, too.
    return math.gcd(*Ranks.of_process_group().gather(launched.local_world_size))


def context_decisions(
    plan: ContextPlan, config: ArchonEngineConfig, dims: ParallelDims, *, role: str
) -> list[Decision]:
    """Decisions about the style, and about the padding that gathering needs."""
    decisions = list(style_decisions(config.archon.cp_style, plan.sizes, plan.split, option=f"{role}.archon.cp_style"))
    ranks, asked = dims.cp * dims.tp, config.batch_align_to
    before = math.lcm(asked, ranks)
    multiple = math.lcm(before, plan.split.multiple(in_order=plan.in_order))
    if multiple != before and asked > 1:
        reason = "each group of context ranks that gather keys and values holds two equal blocks of tokens"
        decisions.append(Decision(f"{role}.batch_align_to", shown(asked), shown(multiple), reason))
    return decisions
