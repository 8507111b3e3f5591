"""Joins I and W where splitting them gains nothing.

A split backward pass walks the graph twice, evaluates custom autograd functions twice, and recomputes checkpointed
blocks twice; a whole one does each once. So where W follows its I at once, and nobody waits for the gradient of the
input meanwhile, both become a B.
"""

from __future__ import annotations

from collections.abc import Sequence

from archon_core.contracts.pipeline import Action, ActionKind, RankActions
from archon_pipeline.simulator import simulate
from archon_pipeline.timeline import TimedAction


def join_halves(actions: RankActions, rank_of: Sequence[int]) -> RankActions:
    """The same lists with B for every I and W that stand together and whose result is not needed before both are done.

    With unit costs no action starts later for it.
    """
    timeline = simulate(actions, rank_of)
    starts = {
        (timed.action.stage, timed.action.micro_batch): timed.start
        for rank in timeline.ranks
        for timed in rank
        if timed.action.kind in (ActionKind.BACKWARD_INPUT, ActionKind.BACKWARD)
    }
    return tuple(tuple(_join(rank, starts)) for rank in timeline.ranks)


def _join(rank: Sequence[TimedAction], starts: dict[tuple[int, int], float]) -> list[Action]:
    joined: list[Action] = []
    for timed in rank:
        action = timed.action
        if action.kind is ActionKind.BACKWARD_WEIGHT and joined:
            stage, micro_batch = action.stage, action.micro_batch
            stands_together = joined[-1] == Action(stage, ActionKind.BACKWARD_INPUT, micro_batch)
            if stands_together and (stage == 0 or starts[stage - 1, micro_batch] >= timed.end):
                joined[-1] = Action(stage, ActionKind.BACKWARD, micro_batch)
                continue
        joined.append(action)
    return joined
