"""The schedules that can run a model on a number of pipeline ranks, with the split of the model, each made once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from archon_core import registry
from archon_core.contracts.pipeline import PIPELINE, PipelineSpec, RankActions, ScheduleSpec, StagePlan
from archon_core.errors import ConfigError, LayoutError
from archon_core.layout.dims import ParallelDims
from archon_core.models.anatomy import ModelAnatomy
from archon_plan.parts import plan_stages, schedule_actions
from archon_plan.rank_shapes import RankShape, rank_shapes
from archon_plan.setting import Setting, Tokens


class PipelinePlans:
    """Schedules and splits of a model, for each size of the pipeline.

    Args:
        anatomy: of the model.
        names: of the schedules to choose from; ``None`` for all that are installed.

    Attributes:
        shapes: size of a pipeline -> for each of its schedules, the ranks that may be the slowest.
    """

    def __init__(self, anatomy: ModelAnatomy, names: tuple[str, ...] | None) -> None:
        self._anatomy, self._names = anatomy, names
        self._of: dict[int, tuple[tuple[ScheduleSpec | None, StagePlan | None], ...]] = {}
        self._places: dict[int, tuple[int, ...]] = {}
        self._shaped: dict[int, tuple[tuple[ScheduleSpec | None, StagePlan | None, int], ...]] = {}
        self._actions: dict[tuple[Any, ...], RankActions] = {}
        self.shapes: dict[int, tuple[tuple[RankShape, ...], ...]] = {}

    def has(self, pp: int) -> bool:
        """Whether some schedule can run the model on so many pipeline ranks."""
        return bool(self.of(pp))

    def of(self, pp: int) -> tuple[tuple[ScheduleSpec | None, StagePlan | None], ...]:
        """The schedules that can, with their stages; one entry of ``None`` without a pipeline."""
        if pp not in self._of:
            self._of[pp] = tuple(self._find(pp)) if pp > 1 else ((None, None),)
            shapes = [self._shapes(found) for found in self._of[pp]]
            self.shapes[pp] = tuple(dict.fromkeys(shapes))
            self._places[pp] = tuple(map(self.shapes[pp].index, shapes))
        return self._of[pp]

    def shaped(self, pp: int) -> tuple[tuple[ScheduleSpec | None, StagePlan | None, int], ...]:
        """As ``of``, with the place of each schedule's ranks in ``shapes``."""
        if pp not in self._shaped:
            pairs = zip(self.of(pp), self._places[pp], strict=True)
            self._shaped[pp] = tuple((*found, place) for found, place in pairs)
        return self._shaped[pp]

    def actions(self, schedule: ScheduleSpec, plan: StagePlan, pp: int, number: int) -> RankActions:
        """The lists of a schedule."""
        key = schedule.name, len(plan), pp, number
        if key not in self._actions:
            self._actions[key] = schedule_actions(schedule, plan, pp, number)
        return self._actions[key]

    def _find(self, pp: int) -> Iterator[tuple[ScheduleSpec, StagePlan]]:
        if not (schedules := _installed_schedules(self._names)):
            return
        pipeline = registry().get(PipelineSpec, PIPELINE)
        # Schedules with equally many stages per rank, placed alike, split a model alike.
        plans: dict[tuple[int, str], StagePlan | None] = {}
        for schedule in schedules:
            key = schedule.usual_stages_per_rank, schedule.placement
            if key not in plans:
                plans[key] = self._split(pipeline, schedule, pp)
            plan = plans[key]
            if plan is not None:
                yield schedule, plan

    def _split(self, pipeline: PipelineSpec, schedule: ScheduleSpec, pp: int) -> StagePlan | None:
        """``None`` if the model has too few layers for the stages of the schedule."""
        try:
            return plan_stages(self._anatomy, pipeline, schedule, n_ranks=pp, options=_NO_OPTIONS)
        except (LayoutError, ConfigError):
            return None

    def _shapes(self, found: tuple[ScheduleSpec | None, StagePlan | None]) -> tuple[RankShape, ...]:
        schedule, plan = found
        if plan is None:
            plan = Setting(self._anatomy, ParallelDims(), Tokens(1)).stage_plan
        return rank_shapes(self._anatomy.kind_of, plan, splits=schedule is not None and schedule.splits_backward)


_NO_OPTIONS: Any = SimpleNamespace(
    pp_layers_per_stage=None, pp_first_stage_less_layers=None, pp_last_stage_less_layers=None
)


@lru_cache(maxsize=8)
def _installed_schedules(names: tuple[str, ...] | None) -> tuple[ScheduleSpec, ...]:
    found = registry().all(ScheduleSpec)
    return tuple(found) if names is None else tuple(registry().get(ScheduleSpec, name) for name in names)
