"""The stages of a pipeline, equal ones once: what a plan computes for one of them holds for all like it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from archon_core.models.stage import Stage
from archon_plan.setting import Setting

Composition = tuple[object, ...]
"""What the times of a stage depend on: its ends, and how many layers of each kind it has, recomputed or not."""

Counts = tuple[tuple[int, int], ...]
"""Kinds of stages and how many stages of each."""


@dataclass(frozen=True)
class RankKind:
    """Pipeline ranks with equal stages.

    Attributes:
        last: the last one of them, which has the most stages before it.
        held: its stages.
        before: stages through which a micro-batch passes before the first of them.
    """

    last: int
    held: Counts
    before: Counts


@dataclass(frozen=True)
class StageKinds:
    """The kinds of stages of a plan.

    Attributes:
        of: for each stage, its kind.
        stages: for each kind, a stage of it.
        compositions: for each kind, what distinguishes it.
        counts: number of stages of each kind.
        ranks: the kinds of pipeline ranks.
        rank_of: for each pipeline rank, its kind, an index of ``ranks``.
    """

    of: tuple[int, ...]
    stages: tuple[Stage, ...]
    compositions: tuple[Composition, ...]
    counts: Counts
    ranks: tuple[RankKind, ...]
    rank_of: tuple[int, ...]


def stage_kinds(setting: Setting) -> StageKinds:
    """The kinds of the stages of a setting."""
    plan = setting.stage_plan
    compositions = [_composition(setting, stage) for stage in plan.stages]
    kinds = {composition: number for number, composition in enumerate(dict.fromkeys(compositions))}
    of = tuple(kinds[composition] for composition in compositions)
    ranks: dict[tuple[int, ...], RankKind] = {}
    alike = []
    for rank in range(setting.dims.pp):
        own = plan.held_by(rank)
        held = tuple(of[stage] for stage in own)
        alike.append(held)
        ranks[held] = RankKind(rank, _counted(held), _counted(of[: own[0]]))
    order = {held: number for number, held in enumerate(ranks)}
    return StageKinds(
        of=of,
        stages=tuple(plan.stages[of.index(kind)] for kind in range(len(kinds))),
        compositions=tuple(kinds),
        counts=_counted(of),
        ranks=tuple(ranks.values()),
        rank_of=tuple(order[held] for held in alike),
    )


def _counted(kinds: tuple[int, ...]) -> Counts:
    return tuple(sorted(Counter(kinds).items()))


def _composition(setting: Setting, stage: Stage) -> Composition:
    return stage.has_embed, stage.has_head, tuple(sorted(setting.layers_of(stage).items()))
