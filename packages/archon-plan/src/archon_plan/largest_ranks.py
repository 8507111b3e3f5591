"""The pipeline ranks of which one needs the most memory.

Ranks with equal stages differ only in how many activations exist at a time. Where one rank has at least as many as
another at every action, the other one needs no look.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache

from archon_core.contracts.pipeline import Action, StagePlan
from archon_plan.rank_states import RankState, Role, SameLists, leading_states
from archon_plan.setting import Setting
from archon_plan.sizes import Same


def largest_ranks(setting: Setting) -> tuple[int, ...]:
    """The ranks of which one needs the most memory, likely ones first: the first rank keeps the most micro-batches, and
    the last one has the head."""
    ranks = tuple(range(setting.dims.pp))
    # Recomputing every Nth block makes stages differ.
    if setting.actions and setting.every is None:
        ranks = _largest(Same(setting.anatomy), setting.stage_plan, SameLists(setting.actions))
    return tuple(sorted(ranks, key=lambda rank: min(rank, setting.dims.pp - 1 - rank)))


@lru_cache(maxsize=1024)
def _largest(same: Same, plan: StagePlan, lists: SameLists) -> tuple[int, ...]:
    kind_of = same.anatomy.kind_of
    groups: dict[Hashable, list[tuple[int, dict[Hashable, list[RankState]]]]] = {}
    for rank, actions in enumerate(lists.actions):
        own = plan.held_by(rank)
        stages = [plan.stages[number] for number in own]
        alike = tuple(
            (stage.has_embed, stage.has_head, tuple(kind_of[layer] for layer in stage.layers)) for stage in stages
        )
        roles = tuple((number, stage.has_embed, stage.has_head) for number, stage in zip(own, stages, strict=True))
        states = _by_action(actions, roles)
        rivals = groups.setdefault(alike, [])
        if not any(_covers(found, states) for _, found in rivals):
            rivals[:] = [(number, found) for number, found in rivals if not _covers(states, found)]
            rivals.append((rank, states))
    return tuple(sorted(rank for rivals in groups.values() for rank, _ in rivals))


def _by_action(actions: tuple[Action, ...], roles: Sequence[Role]) -> dict[Hashable, list[RankState]]:
    """The leading states of a rank, by kind of action and place of its stage on the rank."""
    place = {number: index for index, (number, _, _) in enumerate(roles)}
    found: dict[Hashable, list[RankState]] = {}
    for state in leading_states(actions, tuple(roles)):
        found.setdefault((place[state.stage], state.kind), []).append(state)
    return found


def _covers(more: dict[Hashable, list[RankState]], less: dict[Hashable, list[RankState]]) -> bool:
    """Whether for every state of ``less``, ``more`` has one of the same action that exceeds it."""
    return all(
        any(other.exceeds(state) for other in more.get(action, ())) for action, own in less.items() for state in own
    )
