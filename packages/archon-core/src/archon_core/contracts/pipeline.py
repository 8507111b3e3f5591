"""Contracts of pipeline parallelism: schedules, the split of a model into stages, and the runner of the stages.

A schedule package provides a pure function that returns lists of ``Action``. A pipeline package provides a
``StageSplit``, which returns a ``StagePlan``, and a runner, which executes the lists on the stages of its process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
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
    """Maps the outputs of a micro-batch, padding removed, to the scalar whose gradients are accumulated."""

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: MicroBatch) -> Tensor: ...


class Runner(Protocol):
    """Runs all micro-batches of a step on this process's part of the model."""

    def train(self, micro_batches: Sequence[MicroBatch], objective: Objective) -> None:
        """Accumulate the gradients of the sum of ``objective`` over all micro-batches."""

    def forward(self, micro_batches: Sequence[MicroBatch]) -> Iterator[tuple[MicroBatch, dict[OutputName, Tensor]]]:
        """Yield each micro-batch with its outputs, padding removed, without gradients."""


class PipelinedRunner(Runner, Protocol):
    """Runs micro-batches through the stages of a pipeline, and can record a timeline. All methods but ``record_next``
    are collective over the ranks of the pipeline."""

    def pass_through(self, x: Tensor, packed: PackedSequences) -> dict[OutputName, Tensor]:
        """One forward pass through all stages on whole token ids [T]; returns the outputs on every rank."""

    def record_next(self) -> None:
        """Record the actions of the next call of ``train``."""

    def recorded(self, *, step: int) -> str | None:
        """The recording of the last recorded step, as the content of a file; ``None`` except on the first rank.

        Args:
            step: number of the optimizer step.
        """


@dataclass(frozen=True)
class ScheduleSpec(Spec):
    """A pipeline schedule. ``target`` names an ``archon_core.contracts.pipeline.ScheduleActions``.

    Attributes:
        stages_per_rank: number of stages on each rank; ``None`` for any number from 2.
        placement: assignment of stages to ranks: round-robin (``loop``), or down and up again (``v``).
        splits_backward: whether the lists may contain I and W, the halves of a backward pass.
        multiple_of_ranks: whether the number of micro-batches must be a multiple of the number of pipeline ranks.
    """

    kind: ClassVar[str] = "schedule"
    hook: ClassVar[str] = "archon_schedules"

    stages_per_rank: int | None = 1
    placement: Literal["loop", "v"] = "loop"
    splits_backward: bool = False
    multiple_of_ranks: bool = False

    @property
    def usual_stages_per_rank(self) -> int:
        """The default number of stages per rank.

        For a schedule that accepts any number it is two, the minimum: more stages communicate more, with fewer layers
        each.
        """
        return self.stages_per_rank or 2


@dataclass(frozen=True)
class PipelineSpec(Spec):
    """A stage split and a runner of schedules. ``target`` names a ``PipelinedRunnerFactory``.

    Attributes:
        split: target of a ``StageSplit``. The module that holds it must not import torch.
        replay: target of a ``Replay``, likewise.
    """

    kind: ClassVar[str] = "pipeline"
    hook: ClassVar[str] = "archon_pipelines"

    split: str = ""
    replay: str = ""


class StageOptions(Protocol):
    """The options of an engine that control the split into stages.

    Attributes:
        pp_layers_per_stage: most layers of a stage; ``None`` leaves the number of stages to the schedule.
        pp_first_stage_less_layers: by how many layers to shorten the first stage; ``None`` balances by cost.
        pp_last_stage_less_layers: by how many layers to shorten the last stage; ``None`` balances by cost.
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
        """Split a decoder into stages and place them on ``n_ranks`` pipeline ranks.

        Args:
            layer_costs: time of each layer, in any unit.
            embed_cost: time of the embedding, in the same unit.
            head_cost: time of the final norm and the head, in the same unit.
            schedule: determines the number of stages per rank and their placement.
            n_ranks: pipeline ranks, at least 2.
            options: the user's options for the split.
            role: the section of the options (``actor``), for messages.

        Raises:
            LayoutError: a stage would be empty.
            ConfigError: the options do not fit the schedule or the model.
        """


class PipelinedRunnerFactory(Protocol):
    """``target`` of a ``PipelineSpec``; returns a ``PipelinedRunner``. Collective over the ranks of the pipeline."""

    def __call__(self, pipeline: PipelineParts) -> Any: ...


class ShardedStage(Protocol):
    """The weights of a stage, sharded over data ranks, as seen by the runner.

    In a training step a runner calls ``accumulate`` first, runs its actions, with ``widen`` after every split backward
    pass, and ends with ``reduce``.
    """

    @property
    def frees_weights(self) -> bool:
        """Whether unsharded weights are freed between forward and backward passes."""

    @property
    def whole_parameters(self) -> list[nn.Parameter]:
        """The unsharded parameters that autograd graphs end in. Empty before the first forward pass."""

    def weights_in_turn(self) -> Iterator[list[nn.Parameter]]:
        """The unsharded parameters of one unit after the other, from the last unit to the first, for the second half of
        a split backward pass. Frees the weights of a unit before the next one if forward passes free them too."""

    def accumulate(self) -> None:
        """From now on backward passes add to unsharded gradients and reduce nothing."""

    def widen(self) -> None:
        """Call this after the second half of a split backward pass. It moves the gradients into the dtype of
        reductions, in which gradients of several micro-batches are summed."""

    def reduce(self, *, free: bool = True) -> None:
        """Sum the gradients accumulated since ``accumulate`` over data ranks. Collective.

        Args:
            free: also free the unsharded weights.
        """

    def end_forward_passes(self) -> None:
        """Free the unsharded weights that forward passes without a backward pass leave behind."""


@dataclass(frozen=True)
class PipelineParts:
    """This process's part of a pipeline.

    Attributes:
        plan: all stages of the model.
        schedule: the spec of the schedule to execute.
        stages: stage index -> module, for the stages of this process, ascending.
        groups: stage index -> sharded weights and gradients, for the stages of this process.
        rank: pipeline rank of this process.
        group: the processes of the pipeline, in order of ranks; all of them process the same tokens.
        width: hidden size; stages pass on hidden states [tokens, width].
        tensor_ranks: number of tensor ranks over which the tokens of these hidden states are sharded.
        dtype: dtype of these hidden states.
        device: device of the stages.
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
"""Name of the ``PipelineSpec`` that engines are assembled with."""


class ActionKind(Enum):
    """The kinds of work on one micro-batch and one stage. The letters are those of torch.distributed.pipelining."""

    FORWARD = "F"
    BACKWARD = "B"
    """A whole backward pass: gradients of the input and of the weights."""
    BACKWARD_INPUT = "I"
    """First half of a split backward pass: the gradient of the input."""
    BACKWARD_WEIGHT = "W"
    """Second half: the gradients of the weights."""


@dataclass(frozen=True)
class Action:
    """One step of one rank, written ``2F0``: stage 2, forward, micro-batch 0.

    Attributes:
        stage: index of the stage in the whole model.
        kind: the kind of work.
        micro_batch: index of the micro-batch in its step.
    """

    stage: int
    kind: ActionKind
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind.value}{self.micro_batch}"

    @classmethod
    def parse(cls, text: str) -> Action:
        """Parse the text that ``str`` returns. Raises PluginError."""
        found = re.fullmatch(r"([0-9]{1,9})([FBIW])([0-9]{1,9})", text)
        if found is None:
            raise PluginError(
                f"pipeline action {text!r}: cannot parse it; write stage, one of F B I W, and micro-batch, as in 2F0"
            )
        return cls(int(found[1]), ActionKind(found[2]), int(found[3]))


RankActions = tuple[tuple[Action, ...], ...]
"""Per pipeline rank, its actions in order."""


TimedActions = tuple[tuple[tuple[Action, float, float], ...], ...]
"""Per pipeline rank, its actions with their start and end."""


@dataclass(frozen=True)
class SharedCores:
    """Pipeline ranks that share processor cores: a rank that waits leaves its share to the others of its machine.

    Attributes:
        machine_of: for each pipeline rank, its machine.
        at_once: how many ranks of a machine run at full speed at the same time. While more of them run, they share
            this speed equally: of k ranks, each runs at ``at_once / k``.
    """

    machine_of: tuple[int, ...]
    at_once: float


class Replay(Protocol):
    """``replay`` of a ``PipelineSpec``: a pure function."""

    def __call__(
        self,
        actions: RankActions,
        rank_of: Sequence[int],
        times: Sequence[Mapping[ActionKind, float]],
        *,
        message: float = 0.0,
        cores: SharedCores | None = None,
    ) -> TimedActions:
        """When each action runs if every rank runs its own in order, each as soon as its inputs have arrived.

        Args:
            actions: one list per rank.
            rank_of: for each stage, the rank that holds it.
            times: for each stage, how long an action of each kind takes, in any unit.
            message: from the end of an action until another rank has its result; no rank is busy with it.
            cores: which ranks share cores; ``None``, or left out by plans, if each has its own. ``times`` are those at
                full speed.

        Raises:
            PluginError: ranks deadlock.
        """


class ScheduleActions(Protocol):
    """``target`` of a ``ScheduleSpec``: a pure function, which every rank calls for itself and must agree on.

    Every micro-batch passes every stage once: F, then B, or I and W. Lists give an order, not times. Ranks wait for
    each other's results, and the order must not cause a deadlock.
    """

    def __call__(self, n_ranks: int, n_stages: int, n_micro_batches: int) -> RankActions:
        """The actions of each rank.

        Args:
            n_ranks: pipeline ranks.
            n_stages: stages of the whole model, placed on ranks by the spec's ``placement``.
            n_micro_batches: micro-batches of the step.
        """


@dataclass(frozen=True)
class StagePlan:
    """The stages of a model and their ranks.

    Attributes:
        stages: in the order of the forward pass.
        rank_of: for each stage, the pipeline rank that holds it.
    """

    stages: tuple[Stage, ...]
    rank_of: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.stages)

    def __hash__(self) -> int:
        return self._hash

    def held_by(self, rank: int) -> tuple[int, ...]:
        """The indices of the stages on a pipeline rank, ascending."""
        return self._held.get(rank, ())

    @cached_property
    def _hash(self) -> int:
        # Plans of many stages are keys of caches.
        return hash((self.stages, self.rank_of))

    @cached_property
    def _held(self) -> dict[int, tuple[int, ...]]:
        held: dict[int, list[int]] = {}
        for number, holder in enumerate(self.rank_of):
            held.setdefault(holder, []).append(number)
        return {rank: tuple(numbers) for rank, numbers in held.items()}

    @property
    def last_rank(self) -> int:
        """The pipeline rank on which losses are computed."""
        return self.rank_of[-1]
