"""The ranks of a pipeline that may be the slowest, as counts of equal units: what bounds of its time depend on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from archon_core.contracts.pipeline import StagePlan
from archon_core.models.stage import Stage
from archon_plan.unit_times import Kind


@dataclass(frozen=True)
class RankShape:
    """What determines the time of a pipeline rank: how many units of each kind it holds, and those it waits for.

    Attributes:
        held: units of the rank.
        before: units through which a micro-batch passes before the first of them.
        behind: units through which gradients pass after the last of them, unless backward passes are split.
        stages: of the whole pipeline.
        splits: whether the schedule splits backward passes.
    """

    held: tuple[tuple[Kind, int], ...]
    before: tuple[tuple[Kind, int], ...]
    behind: tuple[tuple[Kind, int], ...]
    stages: int
    splits: bool


def rank_shapes(kind_of: Sequence[int], plan: StagePlan, *, splits: bool) -> tuple[RankShape, ...]:
    """The different ranks of a pipeline that may be the slowest.

    Args:
        kind_of: for each layer of the model, its kind.
        plan: the stages.
        splits: whether the schedule splits backward passes.
    """
    counts = [_units(kind_of, stage) for stage in plan.stages]
    # Of ranks that hold the same units, the last one has the most before it.
    shapes: dict[tuple[tuple[Kind, int], ...], RankShape] = {}
    for rank in sorted(set(plan.rank_of)):
        own = plan.held_by(rank)
        before = sum((counts[stage] for stage in range(own[0])), Counter())
        held = _sorted(sum((counts[stage] for stage in own), Counter()))
        shapes[held] = RankShape(held, _sorted(before), () if splits else _sorted(before), len(plan), splits)
    return tuple(shapes.values())


def _units(kind_of: Sequence[int], stage: Stage) -> Counter[Kind]:
    units: Counter[Kind] = Counter(kind_of[layer] for layer in stage.layers)
    if stage.has_embed:
        units["embed"] += 1
    if stage.has_head:
        units["head"] += 1
    return units


def _sorted(units: Counter[Kind]) -> tuple[tuple[Kind, int], ...]:
    return tuple(sorted(units.items(), key=str))
