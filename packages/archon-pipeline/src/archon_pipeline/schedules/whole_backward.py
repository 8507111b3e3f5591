"""Joins I and W into B where the split gains nothing.

A split backward pass walks the graph twice, evaluates custom autograd functions twice, and recomputes checkpointed
blocks twice; a whole one does each once. Where W directly follows its I, and no rank waits for the gradient of the
input in between, both become one B.
"""

from __future__ import annotations

from collections.abc import Sequence

from archon_core.contracts.pipeline import Action, ActionKind, RankActions
from archon_pipeline.simulator import simulate
from archon_pipeline.timeline import TimedAction


def join_halves(actions: RankActions, rank_of: Sequence[int]) -> RankActions:
    """Replace every adjacent I and W by B if the input gradient is not needed before both are done.

    With unit costs no action starts later.
    """
    # Needed is decided by when the stage before starts its backward pass in the replay, not by when it could.
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
