"""What a pipelined runner is given of an engine: the stages that this process holds, and who has the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.distributed import ProcessGroup

from archon_core.parallel.fsdp import FsdpGroups
from archon_core.pipeline import StagePlan
from archon_core.plugins.specs import ScheduleSpec
from archon_core.protocols import CausalModule


@dataclass(frozen=True)
class PipelineParts:
    """This process's part of a pipeline.

    Attributes:
        plan: all stages.
        schedule: what runs when.
        stages: number of a stage -> its module, of those that are here, ascending.
        groups: number of a stage -> how FSDP2 shards it.
        rank: this process's place in the pipeline.
        group: the processes of the pipeline, in order: those with the same tokens on the other stages.
        width: hidden size: what stages hand on is [tokens, width].
        tensor_ranks: over which the tokens of what they hand on are cut.
        dtype: of what they hand on.
        device: where they run.
        reduce_each: sum gradients over data ranks after every micro-batch instead of once per step.
    """

    plan: StagePlan
    schedule: ScheduleSpec
    stages: Mapping[int, CausalModule]
    groups: Mapping[int, FsdpGroups]
    rank: int
    group: ProcessGroup
    width: int
    tensor_ranks: int
    dtype: torch.dtype
    device: torch.device
    reduce_each: bool = False
