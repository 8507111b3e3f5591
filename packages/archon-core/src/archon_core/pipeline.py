"""What pipeline schedules and the engine tell one another: which stage lies where, and what each rank does when.

A schedule's package gives lists of ``Action``; whoever runs a pipeline gives a ``StagePlan`` and executes the lists.
Imports no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from archon_core.errors import PluginError
from archon_core.models.stage import Stage

RECORD_LOGGER = "archon_core.pipeline_record"
"""What engines say on it is the content of a file; ``role`` is whose."""

PIPELINE = "pipeline"
"""The ``PipelineSpec`` that is used."""


class ActionKind(Enum):
    """What is done with one micro-batch on one stage. The values are those of torch.distributed.pipelining."""

    FORWARD = "F"
    BACKWARD = "B"
    """Gradients of inputs and weights at once."""
    BACKWARD_INPUT = "I"
    BACKWARD_WEIGHT = "W"


@dataclass(frozen=True)
class Action:
    """One step of one rank, written ``2F0``: stage 2, forward, micro-batch 0.

    Attributes:
        stage: number of the stage, counted over the whole model.
        kind: what is done.
        micro_batch: number of the micro-batch in its step.
    """

    stage: int
    kind: ActionKind
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind.value}{self.micro_batch}"

    @classmethod
    def parse(cls, text: str) -> Action:
        """Read what ``str`` writes. Raises PluginError."""
        found = re.fullmatch(r"(\d+)([FBIW])(\d+)", text)
        if found is None:
            raise PluginError(
                f"pipeline action {text!r}: found no such form; write stage, one of F B I W, and micro-batch, as in 2F0"
            )
        return cls(int(found[1]), ActionKind(found[2]), int(found[3]))


RankActions = tuple[tuple[Action, ...], ...]
"""Per pipeline rank, its actions in order."""


class ScheduleActions(Protocol):
    """``target`` of a ``ScheduleSpec``: a pure function.

    Every micro-batch passes every stage once: F, then B or both I and W. An action must come after what it needs, but
    need not say when that is: ranks wait for one another's results.
    """

    def __call__(self, n_ranks: int, n_stages: int, n_micro_batches: int) -> RankActions:
        """The actions of each rank, of which rank r holds the stages that the spec's ``placement`` gives it."""


@dataclass(frozen=True)
class StagePlan:
    """How a model is cut into stages, and where they lie.

    Attributes:
        stages: in the order of the forward pass.
        rank_of: for each stage, the pipeline rank that holds it.
    """

    stages: tuple[Stage, ...]
    rank_of: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.stages)

    def held_by(self, rank: int) -> tuple[int, ...]:
        """The numbers of the stages on a pipeline rank, ascending."""
        return tuple(number for number, holder in enumerate(self.rank_of) if holder == rank)

    @property
    def last_rank(self) -> int:
        """The pipeline rank on which losses are computed."""
        return self.rank_of[-1]
