"""The numbers of stages and micro-batches of a pipeline. Imports no torch, because dry runs report them, too."""

from __future__ import annotations

import math

from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine_config import MicroBatchSpec
from archon_core.contracts.pipeline import PipelineSpec, ScheduleSpec
from archon_engine.options.archon import ArchonOptions


def count_stages(
    pipeline: PipelineSpec, n_layers: int, *, schedule: ScheduleSpec, n_ranks: int, options: ArchonOptions, role: str
) -> int:
    """The number of stages that a model is split into, which does not depend on the costs of layers.

    Raises:
        PluginError: the split cannot be imported.
        ConfigError, LayoutError: the model cannot be split like that, whatever its layers cost.
    """
    split = pipeline.load_part("split")
    costs = [1.0] * n_layers
    plan = split(costs, embed_cost=0.0, head_cost=0.0, schedule=schedule, n_ranks=n_ranks, options=options, role=role)
    return len(plan)


def micro_batch_divisor(schedule: ScheduleSpec, n_ranks: int) -> int:
    """The number of micro-batches on ``n_ranks`` pipeline ranks must be a multiple of this."""
    return n_ranks if schedule.multiple_of_ranks else 1


def micro_batch_decisions(
    spec: MicroBatchSpec, schedule: ScheduleSpec, *, n_ranks: int, n_stages: int, role: str
) -> list[Decision]:
    """The changes that a pipeline makes to ``spec``, as decisions about the options of ``role``."""
    decisions = []
    if spec.n_mbs < n_stages:
        reason = f"{n_stages} pipeline stages are busy at the same time only with {n_stages} or more micro-batches"
        decisions.append(Decision(f"{role}.mb_spec.n_mbs", f"{spec.n_mbs}", f"{n_stages}", reason))
    divisor = micro_batch_divisor(schedule, n_ranks)
    if spec.n_mbs_divisor % divisor:
        multiple = math.lcm(spec.n_mbs_divisor, divisor)
        reason = f"{schedule.name} needs a multiple of the {divisor} pipeline ranks"
        decisions.append(Decision(f"{role}.mb_spec.n_mbs_divisor", f"{spec.n_mbs_divisor}", f"{multiple}", reason))
    return decisions
