"""The units of a module by its parallel plan: the repeated blocks, and the units before and after them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from archon_core.models.name_pattern import matches
from archon_core.models.parallel_plan import ParallelPlan


def blocks_of(module: nn.Module, plan: ParallelPlan) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every block, in the model's order."""
    return ((name, part) for name, part in module.named_modules() if matches(plan.blocks, name))


def units_around_blocks(module: nn.Module, plan: ParallelPlan) -> tuple[list[nn.Module], list[nn.Module]]:
    """The units before the blocks, and the units after them. Either may be empty in a pipeline stage."""
    first_block = plan.units.index(plan.blocks)
    before, after = (
        [part for pattern in patterns for name, part in module.named_modules() if matches(pattern, name)]
        for patterns in (plan.units[:first_block], plan.units[first_block + 1 :])
    )
    return before, after
