"""Replays the action lists of a schedule with given costs: no processes, no torch.

Each rank runs its actions in order, each one as soon as its inputs have arrived. A message delays its receiver, but
costs no rank time: ranks go on working while it is in flight. Ranks may share processor cores (``shared_cores``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate

from archon_core.contracts.pipeline import Action, ActionKind, RankActions, SharedCores, TimedActions
from archon_core.errors import PluginError
from archon_pipeline.costs import Costs, StageCosts
from archon_pipeline.shared_cores import Task, share_cores
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
    ranks = _timed(actions, rank_of, costs or Costs.alike(len(rank_of)))
    return Timeline(tuple(tuple(TimedAction(*each) for each in rank) for rank in ranks), tuple(rank_of))


def end_of(actions: RankActions, rank_of: Sequence[int], costs: Costs | None = None) -> float:
    """``simulate(...).end``, in less time."""
    order = _order(_Lists(actions), tuple(rank_of))
    return max(_ends(order, costs or Costs.alike(len(rank_of)))[0])


def replay(
    actions: RankActions,
    rank_of: Sequence[int],
    times: Sequence[Mapping[ActionKind, float]],
    *,
    message: float = 0.0,
    cores: SharedCores | None = None,
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
    return _timed(actions, rank_of, Costs(stages, message), cores)


def _timed(
    actions: RankActions, rank_of: Sequence[int], costs: Costs, cores: SharedCores | None = None
) -> TimedActions:
    """Every action with its start and end."""
    order = _order(_Lists(actions), tuple(rank_of))
    ends, starts = _ends(order, costs) if cores is None else _shared_ends(order, actions, costs, cores)
    timed, first = [], 0
    for own in actions:
        span = slice(first, first + len(own))
        timed.append(tuple(zip(own, starts[span], ends[span], strict=True)))
        first += len(own)
    return tuple(timed)


class _Lists:
    """Lists as the key of a cache. They compare by identity: schedules return the same lists again."""

    def __init__(self, actions: RankActions) -> None:
        self.actions = actions

    def __hash__(self) -> int:
        return id(self.actions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Lists) and self.actions is other.actions


_Step = tuple[int, int, ActionKind, int, int, bool]
"""An action: its number, its stage and kind, the number of the rank's action before it, the number of the action whose
result arrives from another stage, and whether that is a message from another rank. Missing numbers are -1."""


@lru_cache(maxsize=16)
def _order(lists: _Lists, rank_of: tuple[int, ...]) -> tuple[_Step, ...]:
    """All actions, numbered rank by rank, in an order in which each comes after its inputs.

    The order does not depend on times, so a schedule is replayed with other times without looking for inputs again.

    Raises:
        PluginError: ranks deadlock, or wait for an action that no list contains.
    """
    actions, last = lists.actions, len(rank_of) - 1
    firsts = [0, *accumulate(map(len, actions))]
    finished: dict[_Result, int] = {}
    waiting: dict[_Result, list[int]] = {}
    done = [0] * len(actions)
    steps: list[_Step] = []
    # Each rank runs until a result is missing and is queued under it, so every action is looked at about once.
    ready = list(range(len(actions)))
    while ready:
        rank = ready.pop()
        own, first = actions[rank], firsts[rank]
        while done[rank] < len(own):
            action, number = own[done[rank]], first + done[rank]
            missing, source = None, -1
            for result in inputs_of(action, last):
                if result not in finished:
                    missing = result
                    break
                # A result of the same stage comes from the same rank, which has finished it already.
                if result[1] != action.stage:
                    source = finished[result]
            if missing is not None:
                waiting.setdefault(missing, []).append(rank)
                break
            crosses = source >= 0 and not first <= source < firsts[rank + 1]
            steps.append((number, action.stage, action.kind, number - 1 if done[rank] else -1, source, crosses))
            done[rank] += 1
            for result in results_of(action):
                finished[result] = number
                ready += waiting.pop(result, ())
    _refuse_deadlock(actions, done, last)
    return tuple(steps)


def _ends(order: Sequence[_Step], costs: Costs) -> tuple[list[float], list[float]]:
    """Ends and starts of all actions by their numbers; each list has one number more, 0, at -1."""
    seconds = {(stage, kind): of.of(kind) for stage, of in enumerate(costs.stages) for kind in ActionKind}
    message = costs.message
    ends, starts = [0.0] * (len(order) + 1), [0.0] * (len(order) + 1)
    for number, stage, kind, before, source, crosses in order:
        start, arrival = ends[before], ends[source]
        if crosses:
            arrival += message
        if arrival > start:
            start = arrival
        starts[number] = start
        ends[number] = start + seconds[stage, kind]
    return ends, starts


def _shared_ends(
    order: Sequence[_Step], actions: RankActions, costs: Costs, cores: SharedCores
) -> tuple[list[float], list[float]]:
    """``_ends`` of ranks that share cores."""
    tasks = [Task(0.0)] * len(order)
    for number, stage, kind, _, source, crosses in order:
        tasks[number] = Task(costs.stages[stage].of(kind), source, costs.message if crosses else 0.0)
    return share_cores(tasks, [len(own) for own in actions], cores)


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


def _refuse_deadlock(actions: RankActions, done: Sequence[int], last_stage: int) -> None:
    """Raises PluginError if a rank has actions left, and names the result that each such rank waits for."""
    if all(number == len(own) for own, number in zip(actions, done, strict=True)):
        return
    given = {
        result
        for own, number in zip(actions, done, strict=True)
        for action in own[:number]
        for result in results_of(action)
    }
    stuck = []
    for rank, own in enumerate(actions):
        if done[rank] < len(own):
            action = own[done[rank]]
            missing = next(result for result in inputs_of(action, last_stage) if result not in given)
            stuck.append(f"rank {rank} at its action {done[rank]}, {action}, waits for {_describe(missing)}")
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
