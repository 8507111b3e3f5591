"""Splits a model into pipeline stages: estimates the costs of its units, and calls the split of the pipeline
package."""

from __future__ import annotations

from torch import nn

from archon_core.contracts.pipeline import PipelineSpec, ScheduleSpec, StagePlan
from archon_core.models.parallel_plan import ParallelPlan
from archon_engine.options.archon import ArchonOptions
from archon_engine.parallel.units import blocks_of, units_around_blocks

HEAD_RECOMPUTES = 4 / 3
"""Backward computes a head's matrix product once more than others, because logits are not kept."""


def plan_stages(
    whole: nn.Module,
    plan: ParallelPlan,
    *,
    n_ranks: int,
    schedule: ScheduleSpec,
    pipeline: PipelineSpec,
    options: ArchonOptions,
    role: str,
) -> StagePlan:
    """Split ``whole``, which may be on the meta device, into stages for ``n_ranks`` pipeline ranks.

    Costs are multiplications per token: the number of elements in the matrices of a unit. An embedding multiplies
    nothing and counts as one row. Attention scores are left out, because they cost the same in every layer.

    Raises:
        PluginError: the split cannot be imported.
        LayoutError, ConfigError: from the split.
    """
    split = pipeline.load_part("split")
    before, after = units_around_blocks(whole, plan)
    return split(
        [_products(block) for _, block in blocks_of(whole, plan)],
        embed_cost=sum(parameter.shape[-1] for part in before for parameter in part.parameters()),
        head_cost=HEAD_RECOMPUTES * sum(_products(part) for part in after),
        schedule=schedule,
        n_ranks=n_ranks,
        options=options,
        role=role,
    )


def _products(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters() if parameter.ndim >= 2)
