"""Replays the action lists of a schedule with given costs: no processes, no torch.

Each rank runs its actions in order, each one as soon as its inputs have arrived. A message delays its receiver, but
costs no rank time: ranks go on working while it is in flight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from archon_core.contracts.pipeline import Action, ActionKind, RankActions, TimedActions
from archon_core.errors import PluginError
from archon_pipeline.costs import Costs, StageCosts
from archon_pipeline.timeline import TimedAction, Timeline

_Result = tuple[int, int, int]
"""A result of an action: one of the three kinds below, stage, micro-batch."""

_OUTPUT, _INPUT_GRADIENT, _WEIGHT_GRADIENT = range(3)


def simulate(actions: RankActions, rank_of: Sequence[int], costs: Costs | None = None) -> Timeline:
    """Compute when each action starts and ends.

    Args:
        actions: one list per rank.
        rank_of: for each stage, the rank that holds it.
        costs: times of actions and messages; by default one unit for F, I and W, two for B, and 0 for messages.

    Raises:
        PluginError: ranks deadlock, or wait for an action that no list contains.
    """
    costs = costs or Costs.alike(len(rank_of))
    last = len(rank_of) - 1
    finished: dict[_Result, float] = {}
    waiting: dict[_Result, list[int]] = {}
    done: list[list[TimedAction]] = [[] for _ in actions]
    # Each rank runs until a result is missing and is queued under it, so every action is looked at about once.
    ready = list(range(len(actions)))
    while ready:
        rank = ready.pop()
        own, timed = actions[rank], done[rank]
        while len(timed) < len(own):
            action = own[len(timed)]
            start = timed[-1].end if timed else 0.0
            missing = None
            for result in inputs_of(action, last):
                if result not in finished:
                    missing = result
                    break
                arrival = finished[result] + (0.0 if rank_of[result[1]] == rank else costs.message)
                start = max(start, arrival)
            if missing is not None:
                waiting.setdefault(missing, []).append(rank)
                break
            end = start + costs.stages[action.stage].of(action.kind)
            timed.append(TimedAction(action, start, end))
            for result in results_of(action):
                finished[result] = end
                ready += waiting.pop(result, ())
    _refuse_deadlock(actions, done, last)
    return Timeline(tuple(map(tuple, done)), tuple(rank_of))


def replay(
    actions: RankActions,
    rank_of: Sequence[int],
    times: Sequence[Mapping[ActionKind, float]],
    *,
    message: float = 0.0,
) -> TimedActions:
    """``archon_core.contracts.pipeline.Replay``, by ``simulate``."""
    stages = tuple(
        StageCosts(
            forward=of_stage[ActionKind.FORWARD],
            backward_input=of_stage[ActionKind.BACKWARD_INPUT],
            backward_weight=of_stage[ActionKind.BACKWARD_WEIGHT],
            backward=of_stage[ActionKind.BACKWARD],
        )
        for of_stage in times
    )
    timeline = simulate(actions, rank_of, Costs(stages, message))
    return tuple(tuple((timed.action, timed.start, timed.end) for timed in rank) for rank in timeline.ranks)


def inputs_of(action: Action, last_stage: int) -> tuple[_Result, ...]:
    """The results that an action needs before it can start."""
    stage, micro_batch = action.stage, action.micro_batch
    if action.kind is ActionKind.FORWARD:
        return ((_OUTPUT, stage - 1, micro_batch),) if stage else ()
    if action.kind is ActionKind.BACKWARD_WEIGHT:
        return ((_INPUT_GRADIENT, stage, micro_batch),)
    own = (_OUTPUT, stage, micro_batch)
    return (own,) if stage == last_stage else (own, (_INPUT_GRADIENT, stage + 1, micro_batch))


def results_of(action: Action) -> tuple[_Result, ...]:
    """The results that an action produces."""
    stage, micro_batch = action.stage, action.micro_batch
    if action.kind is ActionKind.FORWARD:
        return ((_OUTPUT, stage, micro_batch),)
    if action.kind is ActionKind.BACKWARD_INPUT:
        return ((_INPUT_GRADIENT, stage, micro_batch),)
    if action.kind is ActionKind.BACKWARD_WEIGHT:
        return ((_WEIGHT_GRADIENT, stage, micro_batch),)
    return ((_INPUT_GRADIENT, stage, micro_batch), (_WEIGHT_GRADIENT, stage, micro_batch))


def _refuse_deadlock(actions: RankActions, done: Sequence[Sequence[TimedAction]], last_stage: int) -> None:
    """Raises PluginError if a rank has actions left, and names the result that each such rank waits for."""
    given = {result for rank in done for timed in rank for result in results_of(timed.action)}
    stuck = []
    for rank, own in enumerate(actions):
        if len(done[rank]) < len(own):
            action = own[len(done[rank])]
            missing = next(result for result in inputs_of(action, last_stage) if result not in given)
            stuck.append(f"rank {rank} at its action {len(done[rank])}, {action}, waits for {_describe(missing)}")
    if stuck:
        raise PluginError(
            f"pipeline actions: found a deadlock ({'; '.join(stuck)}); allowed is an order in which "
            "every action comes after its inputs; move these actions back, or their inputs forward"
        )


def _describe(result: _Result) -> str:
    what, stage, micro_batch = result
    if what == _OUTPUT:
        return f"{stage}F{micro_batch}"
    return f"{stage}B{micro_batch} or {stage}I{micro_batch}"
