"""The program of a pipeline rank: its actions, and the messages it receives, in order.

Derived from the action lists of all ranks, by pure functions. Programs are cached per number of micro-batches, of which
a run has few.
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
    """A tensor that one stage passes to the next, or back.

    Attributes:
        to_stage: the receiving stage.
        is_gradient: whether it is the gradient of that stage's output; otherwise it is that stage's input.
        micro_batch: index of the micro-batch.
    """

    to_stage: int
    is_gradient: bool
    micro_batch: int


@dataclass(frozen=True)
class RankProgram:
    """A step of one pipeline rank.

    Attributes:
        actions: in order of execution.
        incoming: sending rank -> its messages to this rank, in the order of sending.
        fingerprint: checksum of the action lists of all ranks; equal on ranks that computed equal lists.
    """

    actions: tuple[Action, ...]
    incoming: Mapping[int, tuple[Message, ...]]
    fingerprint: int


class Programs:
    """The programs of one pipeline rank.

    Args:
        schedule: computes the action lists of a training step.
        spec: the spec of the schedule.
        plan: all stages of the model.
        n_ranks: pipeline ranks.
        rank: this pipeline rank.
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
        """The program of a training step.

        Raises:
            PluginError: the action lists of the schedule cannot be executed.
        """
        actions = self._schedule(self._n_ranks, len(self._plan), n_micro_batches)
        check_actions(actions, self._plan.rank_of, n_micro_batches, schedule=self._spec.name)
        self._check_halves(actions)
        return rank_program(actions, self._plan, self._rank)

    def _check_halves(self, actions: RankActions) -> None:
        """Options that exclude split backward passes are checked against the spec, so the lists must agree with it."""
        halves = [action for own in actions for action in own if action.kind is ActionKind.BACKWARD_WEIGHT]
        if halves and not self._spec.splits_backward:
            raise PluginError(
                f"{self._spec.name}: found {halves[0]}, half of a backward pass; its ScheduleSpec allows whole ones; "
                "set splits_backward=True in the spec, or write B instead of I and W"
            )

    def _forward_only(self, n_micro_batches: int) -> RankProgram:
        """The program of a step of forward passes, the same for every schedule."""
        return rank_program(forward_actions(self._plan, self._n_ranks, n_micro_batches), self._plan, self._rank)


def forward_actions(plan: StagePlan, n_ranks: int, n_micro_batches: int) -> RankActions:
    """Forward passes alone: each rank runs first what can be ready first, and on a tie the deeper stage."""
    order = sorted(
        (Action(stage, ActionKind.FORWARD, number) for stage in range(len(plan)) for number in range(n_micro_batches)),
        key=lambda action: (action.stage + action.micro_batch, -action.stage),
    )
    return tuple(tuple(a for a in order if plan.rank_of[a.stage] == rank) for rank in range(n_ranks))


def rank_program(actions: RankActions, plan: StagePlan, rank: int) -> RankProgram:
    """Select the actions of ``rank`` and the messages that the other ranks' actions send to it."""
    incoming: dict[int, list[Message]] = {}
    for sender, own in enumerate(actions):
        if sender != rank:
            messages = [message for message in _sent(own, plan) if plan.rank_of[message.to_stage] == rank]
            if messages:
                incoming[sender] = messages
    listed = "\n".join(" ".join(map(str, own)) for own in actions)
    received = {sender: tuple(messages) for sender, messages in incoming.items()}
    return RankProgram(actions[rank], received, zlib.crc32(listed.encode()))


def message_of(action: Action, n_stages: int) -> Message | None:
    """The message that an action produces for another stage; ``None`` for none."""
    if action.kind is ActionKind.FORWARD and action.stage + 1 < n_stages:
        return Message(action.stage + 1, False, action.micro_batch)
    if action.kind in (ActionKind.BACKWARD, ActionKind.BACKWARD_INPUT) and action.stage > 0:
        return Message(action.stage - 1, True, action.micro_batch)
    return None


def _sent(actions: Sequence[Action], plan: StagePlan) -> list[Message]:
    return [message for action in actions if (message := message_of(action, len(plan))) is not None]
