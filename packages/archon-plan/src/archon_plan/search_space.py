"""What a search chooses from: layouts of a number of devices, schedules, micro-batches and checkpointing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from archon_core.contracts.pipeline import ScheduleSpec, StagePlan
from archon_core.layout.dims import ParallelDims
from archon_core.models.anatomy import ModelAnatomy
from archon_plan.devices import Device
from archon_plan.layout_space import ALL_AXES, valid_dims
from archon_plan.micro_batches import MicroBatches
from archon_plan.parts import forward_actions
from archon_plan.pipeline_plans import PipelinePlans
from archon_plan.setting import Checkpointing, Setting, Tokens

MODES: tuple[Checkpointing, ...] = ("none", "selective", "memory_budget", "full")


@dataclass(frozen=True)
class Sought:
    """What to search for.

    Attributes:
        anatomy: of the model.
        device: of every rank.
        sequences: of one optimizer step, on all ranks together.
        base: options that all candidates share: tokens have the mean length and the scored share; dims, stages,
            schedule, checkpointing and resharding are ignored. ``None`` for the defaults with compiled blocks.
        most_tokens: of a micro-batch (``mb_spec.max_tokens_per_mb``); ``None`` for no limit.
        axes: letters that may have a size above 1.
        modes: activation checkpointing to choose from, the one that keeps most first.
        schedules: names of pipeline schedules to choose from; ``None`` for all that are installed.
        granularity: consecutive sequences that stay in one micro-batch (``mb_spec.granularity``).
        divisor: micro-batches are planned in multiples of this number (``mb_spec.n_mbs_divisor``).
        strict: leave out layouts that pad to another multiple than ``base.aligned_to`` (``archon.strict``).
    """

    anatomy: ModelAnatomy
    device: Device
    sequences: int
    base: Setting | None = None
    most_tokens: int | None = None
    axes: str = ALL_AXES
    modes: tuple[Checkpointing, ...] = MODES
    schedules: tuple[str, ...] | None = None
    granularity: int = 1
    divisor: int = 1
    strict: bool = False


class Option(NamedTuple):
    """A schedule and a number of micro-batches.

    Attributes:
        schedule: ``None`` without a pipeline.
        plan: its stages.
        place: of its ranks among the shapes of ``PipelinePlans``.
        tokens: of the micro-batches.
        compiles: whether blocks are compiled.
    """

    schedule: ScheduleSpec | None
    plan: StagePlan | None
    place: int
    tokens: Tokens
    compiles: bool


class SearchSpace:
    """The settings of one model.

    Args:
        sought: model, device, sequences and options.

    Attributes:
        base: what all settings share, without a pipeline.
        micro_batches: of every layout.
        plans: of pipelines.
    """

    def __init__(self, sought: Sought) -> None:
        base = sought.base or Setting(sought.anatomy, ParallelDims(), Tokens(1), compiles=sought.device.kind == "gpu")
        self._sought = sought
        self.base = replace(base, anatomy=sought.anatomy, stages=None, schedule=None, actions=())
        self.micro_batches = MicroBatches(
            self.base, sought.sequences, granularity=sought.granularity, divisor=sought.divisor
        )
        self.plans = PipelinePlans(sought.anatomy, sought.schedules)

    def layouts(self, world: int) -> Iterator[ParallelDims]:
        """The layouts on ``world`` devices for which there is a schedule."""
        return (dims for dims in self.sizes(world) if self.plans.has(dims.pp))

    def sizes(self, world: int) -> Iterator[ParallelDims]:
        """The sizes of axes on ``world`` devices, with or without a schedule for them."""
        found = valid_dims(self._sought.anatomy, world, axes=self._sought.axes, cp_style=self.base.cp_style)
        return filter(self.micro_batches.keeps_alignment, found) if self._sought.strict else found

    def options(self, dims: ParallelDims) -> Iterator[Option]:
        """The schedules and numbers of micro-batches of a layout."""
        groups = self.micro_batches.groups_of(dims)
        known: dict[int, Tokens | None] = {}
        for schedule, plan, place in self.plans.shaped(dims.pp):
            multiple = dims.pp if schedule is not None and schedule.multiple_of_ranks else 1
            compiles = self.base.compiles and not (schedule is not None and schedule.splits_backward)
            for number in self.micro_batches.numbers(groups, 1 if plan is None else len(plan), multiple):
                if number not in known:
                    known[number] = self._tokens(dims, -(-groups // number), number)
                if (tokens := known[number]) is not None:
                    yield Option(schedule, plan, place, tokens, compiles)

    def _tokens(self, dims: ParallelDims, groups: int, number: int) -> Tokens | None:
        """Micro-batches of that many groups; ``None`` if they are too long."""
        most = self._sought.most_tokens
        if most is not None and groups > 1 and self.micro_batches.tokens(groups) > most:
            return None
        base = self.base.tokens
        return Tokens(self.micro_batches.padded_tokens(dims, groups), number, base.sequence, base.scored)

    def setting(self, dims: ParallelDims, option: Option, mode: Checkpointing) -> Setting:
        """The setting of a layout, an option and a mode of checkpointing that the option allows."""
        return replace(
            self.base,
            dims=dims,
            tokens=option.tokens,
            stages=option.plan,
            schedule=option.schedule,
            reshards=dims.pp == 1,
            reshards_last=False,
            compiles=option.compiles,
            checkpointing=mode,
            every=None,
        )

    def allowed_modes(self, schedule: ScheduleSpec | None) -> Iterator[Checkpointing]:
        """The modes of activation checkpointing that the engine allows with a schedule."""
        splits = schedule is not None and schedule.splits_backward
        for mode in self._sought.modes:
            if mode == "selective" and splits:
                continue
            if mode == "memory_budget" and (splits or not self.base.compiles):
                continue
            if mode == "none" or self.base.trains:
                yield mode

    def with_actions(self, setting: Setting) -> Setting:
        """The setting with the lists of its schedule."""
        if setting.schedule is None or setting.stages is None or setting.actions:
            return setting
        ranks, number = setting.dims.pp, setting.tokens.n_micro_batches
        if not setting.trains:
            return replace(setting, actions=forward_actions(setting.stages, ranks, number))
        return replace(setting, actions=self.plans.actions(setting.schedule, setting.stages, ranks, number))
