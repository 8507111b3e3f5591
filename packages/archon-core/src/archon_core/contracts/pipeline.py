"""Pipelines: schedules, how a model is cut into stages, and who runs the stages.

A schedule's package gives lists of ``Action``; whoever runs a pipeline gives a ``StagePlan`` and executes the lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from archon_core.contracts.spec import Spec
from archon_core.errors import PluginError
from archon_core.models.stage import Stage

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.distributed import ProcessGroup

    from archon_core.contracts.batch import MicroBatch
    from archon_core.contracts.model import CausalModule
    from archon_core.contracts.packed import OutputName, PackedSequences


class Objective(Protocol):
    """From a micro-batch's outputs, padding removed, to the scalar whose gradients are accumulated."""

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: MicroBatch) -> Tensor: ...


class Runner(Protocol):
    """Runs all micro-batches of a step."""

    def train(self, micro_batches: Sequence[MicroBatch], objective: Objective) -> None:
        """Accumulate the gradients of the sum of ``objective`` over all micro-batches."""

    def forward(self, micro_batches: Sequence[MicroBatch]) -> Iterator[tuple[MicroBatch, dict[OutputName, Tensor]]]:
        """Each micro-batch with its outputs, padding removed, without gradients, as they come."""


class PipelinedRunner(Runner, Protocol):
    """Runs them through the stages of a pipeline, and can tell when it did what."""

    def pass_through(self, x: Tensor, packed: PackedSequences) -> dict[OutputName, Tensor]:
        """One forward pass of whole token ids [T] through all stages; the outputs on every rank."""

    def record_next(self) -> None:
        """Time the actions of the next call of ``train``."""

    def recorded(self, *, step: int) -> str | None:
        """What was timed, as the content of a file; ``None`` on all but the first pipeline rank. Collective."""


@dataclass(frozen=True)
class ScheduleSpec(Spec):
    """A pipeline schedule. ``target`` names an ``archon_core.contracts.pipeline.ScheduleActions``.

    Attributes:
        stages_per_rank: how many stages each rank holds; ``None`` when any number from 2 works.
        placement: how stages are laid over ranks: round-robin (``loop``) or down and up again (``v``).
        splits_backward: whether input and weight gradients are separate actions.
        multiple_of_ranks: whether the number of micro-batches must be a multiple of that of pipeline ranks.
    """

    kind: ClassVar[str] = "schedule"
    hook: ClassVar[str] = "archon_schedules"

    stages_per_rank: int | None = 1
    placement: Literal["loop", "v"] = "loop"
    splits_backward: bool = False
    multiple_of_ranks: bool = False

    @property
    def usual_stages_per_rank(self) -> int:
        """The stages of each rank where no option asks for another number.

        Two, the fewest, for a schedule that takes any: more of them send more and fill fewer layers each.
        """
        return self.stages_per_rank or 2


@dataclass(frozen=True)
class PipelineSpec(Spec):
    """What cuts models into stages and runs schedules. ``target`` names a ``PipelinedRunnerFactory``.

    Attributes:
        split: target of a ``StageSplit``. The module that holds it must not import torch.
    """

    kind: ClassVar[str] = "pipeline"
    hook: ClassVar[str] = "archon_pipelines"

    split: str = ""


class StageOptions(Protocol):
    """An engine's options for the split into stages.

    Attributes:
        pp_layers_per_stage: most layers of a stage; ``None`` takes as many stages as the schedule needs.
        pp_first_stage_less_layers: by how many layers the first stage is shorter; ``None`` balances by cost.
        pp_last_stage_less_layers: the same of the last stage.
    """

    pp_layers_per_stage: int | None
    pp_first_stage_less_layers: int | None
    pp_last_stage_less_layers: int | None


class StageSplit(Protocol):
    """``split`` of a ``PipelineSpec``: a pure function."""

    def __call__(
        self,
        layer_costs: Sequence[float],
        *,
        embed_cost: float,
        head_cost: float,
        schedule: ScheduleSpec,
        n_ranks: int,
        options: StageOptions,
        role: str,
    ) -> StagePlan:
        """Cut a decoder into stages and lay them over ``n_ranks`` pipeline ranks.

        Args:
            layer_costs: time of each layer, in any unit.
            embed_cost: of the embedding, in the same.
            head_cost: of final norm and head.
            schedule: says how many stages a rank has, and where they lie.
            n_ranks: pipeline ranks, at least 2.
            options: what the user says about the split.
            role: the name of their section, for messages.

        Raises:
            LayoutError: a stage would be empty.
            ConfigError: the options fit neither the schedule nor the model.
        """


class PipelinedRunnerFactory(Protocol):
    """``target`` of a ``PipelineSpec``; the result is an ``archon_core.contracts.pipeline.Runner``."""

    def __call__(self, pipeline: PipelineParts) -> Any: ...


class ShardedStage(Protocol):
    """The weights of a stage, sharded over data ranks, as a pipeline's runner handles them."""

    @property
    def frees_weights(self) -> bool:
        """Whether whole weights are freed between forward and backward passes."""

    @property
    def whole_parameters(self) -> list[nn.Parameter]:
        """The unsharded parameters that autograd graphs lead to; only after a forward pass."""

    def accumulate(self) -> None:
        """From now on, have backward passes add up whole gradients and reduce none."""

    def widen(self) -> None:
        """After the second half of a split backward pass: keep its gradients in the type in which they are reduced."""

    def reduce(self, *, free: bool = True) -> None:
        """Sum over ranks what has been added up since ``accumulate``. Collective. ``free`` reshards the weights."""

    def end_forward_passes(self) -> None:
        """Free the whole weights that forward passes without a backward pass left behind."""


@dataclass(frozen=True)
class PipelineParts:
    """This process's part of a pipeline.

    Attributes:
        plan: all stages.
        schedule: what runs when.
        stages: number of a stage -> its module, of those that are here, ascending.
        groups: number of a stage -> its sharded weights and gradients.
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
    groups: Mapping[int, ShardedStage]
    rank: int
    group: ProcessGroup
    width: int
    tensor_ranks: int
    dtype: torch.dtype
    device: torch.device
    reduce_each: bool = False


RECORDING_PREFIX = "pipeline-"
"""The recording of a role's pipeline is the file ``pipeline-<role>.json`` of the run folder."""


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
