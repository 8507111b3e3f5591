"""Everything about a step that its numbers do not change: who does what in which order, and who tells whom.

Pure and cached: a run has few numbers of micro-batches, and a schedule gives the same lists for each of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from archon_core.contracts.pipeline import (
    Action,
    ActionKind,
    RankActions,
    ScheduleActions,
    ScheduleSpec,
    StagePlan,
)
from archon_core.errors import PluginError
from archon_pipeline.checking import check_actions


@dataclass(frozen=True)
class Message:
    """What one stage hands to the next, or back.

    Attributes:
        to_stage: the stage that works on it.
        is_gradient: of that stage's output, as against its input.
        micro_batch: number of the micro-batch.
    """

    to_stage: int
    is_gradient: bool
    micro_batch: int


@dataclass(frozen=True)
class RankProgram:
    """A step of one pipeline rank.

    Attributes:
        actions: in order.
        incoming: other rank -> what comes from it, in the order in which it sends.
        fingerprint: the same on ranks that hold the same lists of all ranks.
    """

    actions: tuple[Action, ...]
    incoming: Mapping[int, tuple[Message, ...]]
    fingerprint: int


class Programs:
    """The programs of one pipeline rank.

    Args:
        schedule: gives the lists for training.
        spec: what it says of itself.
        plan: all stages.
        n_ranks: pipeline ranks.
        rank: this one.
    """

    def __init__(self, schedule: ScheduleActions, spec: ScheduleSpec, plan: StagePlan, n_ranks: int, rank: int) -> None:
        self._schedule = schedule
        self._spec = spec
        self._plan = plan
        self._n_ranks = n_ranks
        self._rank = rank
        self.training = lru_cache(maxsize=16)(self._training)
        self.forward_only = lru_cache(maxsize=16)(self._forward_only)

    def _training(self, n_micro_batches: int) -> RankProgram:
        """Forward and backward of as many micro-batches.

        Raises:
            PluginError: the schedule's lists cannot be executed.
        """
        actions = self._schedule(self._n_ranks, len(self._plan), n_micro_batches)
        check_actions(actions, self._plan.rank_of, n_micro_batches, schedule=self._spec.name)
        self._check_halves(actions)
        return rank_program(actions, self._plan, self._rank)

    def _check_halves(self, actions: RankActions) -> None:
        """What does not go with split backward passes, such as an option, is refused by what the spec says of them."""
        halves = [action for own in actions for action in own if action.kind is ActionKind.BACKWARD_WEIGHT]
        if halves and not self._spec.splits_backward:
            raise PluginError(
                f"{self._spec.name}: found {halves[0]}, half a backward pass; its ScheduleSpec allows whole ones; "
                "write splits_backward=True there, or B for I and W"
            )

    def _forward_only(self, n_micro_batches: int) -> RankProgram:
        """Forward passes of as many micro-batches, for any schedule."""
        return rank_program(forward_actions(self._plan, self._n_ranks, n_micro_batches), self._plan, self._rank)


def forward_actions(plan: StagePlan, n_ranks: int, n_micro_batches: int) -> RankActions:
    """Forward passes alone: every rank takes what can be ready first, and of those what is nearest to its end."""
    order = sorted(
        (Action(stage, ActionKind.FORWARD, number) for stage in range(len(plan)) for number in range(n_micro_batches)),
        key=lambda action: (action.stage + action.micro_batch, -action.stage),
    )
    return tuple(tuple(a for a in order if plan.rank_of[a.stage] == rank) for rank in range(n_ranks))


def rank_program(actions: RankActions, plan: StagePlan, rank: int) -> RankProgram:
    """What ``rank`` does, and what it is told while it does it."""
    incoming: dict[int, list[Message]] = {}
    for sender, own in enumerate(actions):
        if sender != rank:
            messages = [message for message in _sent(own, plan) if plan.rank_of[message.to_stage] == rank]
            if messages:
                incoming[sender] = messages
    listed = "\n".join(" ".join(map(str, own)) for own in actions)
    received = {sender: tuple(messages) for sender, messages in incoming.items()}
    return RankProgram(actions[rank], received, zlib.crc32(listed.encode()))


def result_of(action: Action, n_stages: int) -> Message | None:
    """What an action gives to another stage; ``None`` for nothing."""
    if action.kind is ActionKind.FORWARD and action.stage + 1 < n_stages:
        return Message(action.stage + 1, False, action.micro_batch)
    if action.kind in (ActionKind.BACKWARD, ActionKind.BACKWARD_INPUT) and action.stage > 0:
        return Message(action.stage - 1, True, action.micro_batch)
    return None


def _sent(actions: Sequence[Action], plan: StagePlan) -> list[Message]:
    return [message for action in actions if (message := result_of(action, len(plan))) is not None]
