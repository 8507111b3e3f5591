"""Which activations exist while a pipeline rank runs its list of actions: a replay of the list alone, without sizes.

Lists of many micro-batches repeat a few states, and the peak of memory is at a state with the most activations. Both
are found once per list, for all settings that share it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from archon_core.contracts.pipeline import Action, ActionKind

Role = tuple[int, bool, bool]
"""A stage of the rank: its index, whether it is the first one of the pipeline, and whether it is the last one."""


@dataclass(frozen=True)
class RankState:
    """What exists while a rank runs an action.

    Attributes:
        stage: index of the stage that runs.
        kind: of the action.
        runs: whether the blocks run backward.
        is_half: whether the action is the first half of a split backward pass.
        alive: for each stage of the rank, micro-batches whose activations exist.
        deferred: for each stage, micro-batches whose gradients of activations wait for W.
    """

    stage: int
    kind: ActionKind
    runs: bool
    is_half: bool
    alive: tuple[int, ...]
    deferred: tuple[int, ...]

    def exceeds(self, other: RankState) -> bool:
        """Whether nothing is less than in ``other``, for the same action."""
        pairs = (*zip(self.alive, other.alive, strict=True), *zip(self.deferred, other.deferred, strict=True))
        return all(own >= theirs for own, theirs in pairs)


def states(actions: tuple[Action, ...], roles: tuple[Role, ...]) -> Iterator[RankState]:
    """The states of a rank's actions, in their order.

    Args:
        actions: of the rank.
        roles: of its stages.
    """
    place = {number: index for index, (number, _, _) in enumerate(roles)}
    alive, deferred = [0] * len(roles), [0] * len(roles)
    # Each state of the steady phase is made once.
    known: dict[tuple[object, ...], RankState] = {}
    for action in actions:
        own, ends, runs = place[action.stage], False, False
        if action.kind is ActionKind.FORWARD:
            alive[own] += 1
        else:
            ends, runs = _effect(action, *roles[own][1:])
        defers = action.kind is ActionKind.BACKWARD_INPUT and not ends
        key = (action.stage, action.kind, *alive, *deferred)
        if key not in known:
            known[key] = RankState(action.stage, action.kind, runs, defers, tuple(alive), tuple(deferred))
        yield known[key]
        alive[own] -= ends
        if defers:
            deferred[own] += 1
        elif action.kind is ActionKind.BACKWARD_WEIGHT and ends:
            deferred[own] -= 1


def leading_states(actions: tuple[Action, ...], roles: tuple[Role, ...]) -> tuple[RankState, ...]:
    """The states of which one has the peak of memory, whatever the stages take: of states of the same action, one that
    another exceeds is left out."""
    return _leading(SameLists(actions), roles)


class SameLists:
    """The list of a rank, or those of all ranks, as the key of a cache. It compares by identity: schedules return the
    same lists again."""

    def __init__(self, actions: tuple[Any, ...]) -> None:
        self.actions = actions

    def __hash__(self) -> int:
        return id(self.actions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SameLists) and self.actions is other.actions


@lru_cache(maxsize=16384)
def _leading(own: SameLists, roles: tuple[Role, ...]) -> tuple[RankState, ...]:
    leading: dict[tuple[int, ActionKind], list[RankState]] = {}
    for state in dict.fromkeys(states(own.actions, roles)):
        rivals = leading.setdefault((state.stage, state.kind), [])
        if not any(rival.exceeds(state) for rival in rivals):
            rivals[:] = [rival for rival in rivals if not state.exceeds(rival)] + [state]
    return tuple(state for rivals in leading.values() for state in rivals)


def _effect(action: Action, is_first: bool, is_last: bool) -> tuple[bool, bool]:
    """Whether a backward action ends the life of activations, and whether it runs the blocks backward.

    The ends of a pipeline do not split: the last stage does everything in I, the first in W
    (``archon_pipeline.stage_passes``).
    """
    if action.kind is ActionKind.BACKWARD:
        return True, True
    if action.kind is ActionKind.BACKWARD_INPUT:
        return is_last, not is_first
    return not is_last, is_first
