"""List scheduling, which computes the zero-bubble schedules.

Time advances in units, and F, I and W take one unit each. In every unit each rank runs, of the actions whose inputs are
available, the one to which a ``Rule`` gives priority. Memory is bounded: a rank that holds ``limit`` activations starts
no forward pass until a W frees one. A few rules are tried, and the best list is kept.

Every rank computes the lists of all ranks for itself, so the result must depend on the arguments alone: no sets, no
clocks, no random numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from archon_core.contracts.pipeline import Action, ActionKind, RankActions
from archon_pipeline.costs import Costs, StageCosts
from archon_pipeline.schedules.whole_backward import join_halves
from archon_pipeline.simulator import end_of
from archon_pipeline.timeline import count_peak_activations

_TYPICAL = StageCosts(forward=1.0, backward_input=1.25, backward_weight=1.0, backward=2.0)
_FIRST = StageCosts(forward=1.0, backward_input=0.0, backward_weight=2.0)
_LAST = StageCosts(forward=1.0, backward_input=2.0, backward_weight=0.0)
_MESSAGE = 0.1
"""Typical costs, which break ties between lists that are equally short in units. Gradients of inputs take a little
longer than those of weights, since attention has no weights; two halves take longer than a whole backward pass. The
first stage does all its backward work in W and the last one in I (``StagePasses.backward_input``)."""


@dataclass(frozen=True)
class Rule:
    """Priorities of a rank that could run several actions.

    Attributes:
        forward: F before I, or F and I alternating. W comes last, except under ``backlog``.
        forward_order: the deepest stage of the rank first, or stages by rounds of as many micro-batches as ranks.
        backward_order: the deepest or the shallowest stage first.
        backlog: how many W may be pending while forward passes remain: none, or as many as there are ranks before or
            after this one. A W beyond that takes priority over everything; the others fill units in which the rank
            would wait.
        reserves_room: start a forward pass only if the micro-batch's passes through the deeper stages of this rank also
            fit the limit.
    """

    forward: Literal["first", "alternating"]
    forward_order: Literal["deepest", "rounds"]
    backward_order: Literal["deepest", "shallowest"]
    backlog: Literal["none", "ranks before", "ranks after"]
    reserves_room: bool = False


def find_schedule(rank_of: Sequence[int], n_micro_batches: int, rules: Sequence[Rule], limit: int) -> RankActions:
    """The best of the lists that ``rules`` produce.

    The best is the shortest in units; on a tie the one with the lowest peak of activations; then the shortest at
    typical costs; then the one of the earlier rule.

    Args:
        rank_of: for each stage, the rank that holds it; all ranks hold the same number.
        n_micro_batches: micro-batches of the step.
        rules: the rules to try.
        limit: most activations of a rank, counted per stage and micro-batch. Grows while every rule gets stuck.
    """
    # A rule gets stuck when all ranks are full of forward passes whose gradients wait for a stage that cannot start.
    # Terminates: with room for all activations of a rank no rule can get stuck.
    found: list[RankActions] = []
    while not found:
        tries = (apply_rule(rank_of, n_micro_batches, rule, limit) for rule in rules)
        found = [actions for actions in tries if actions is not None]
        limit += 1
    # Joining halves does not change the end in units.
    shortest = _least(found, lambda actions: end_of(actions, rank_of))
    joined = [join_halves(actions, rank_of) for actions in shortest]
    typical = Costs((_FIRST, *(_TYPICAL for _ in rank_of[2:]), _LAST), message=_MESSAGE)
    lowest = _least(joined, lambda actions: max(count_peak_activations(actions)))
    return lowest[0] if len(lowest) == 1 else _least(lowest, lambda actions: end_of(actions, rank_of, typical))[0]


def _least(lists: Sequence[RankActions], measure: Callable[[RankActions], float]) -> list[RankActions]:
    """The lists of the least measure, in their order."""
    measures = [measure(actions) for actions in lists]
    return [actions for actions, each in zip(lists, measures, strict=True) if each == min(measures)]


def apply_rule(rank_of: Sequence[int], n_micro_batches: int, rule: Rule, limit: int) -> RankActions | None:
    """The lists that one rule produces, all backward passes split; ``None`` if the limit stops every rank."""
    pipeline = _Pipeline(rank_of, n_micro_batches, rule, limit)
    while not pipeline.is_done():
        if not pipeline.advance():
            return None
    return tuple(tuple(rank.order) for rank in pipeline.ranks)


class _Rank:
    """The state of one rank."""

    def __init__(self, stages: tuple[int, ...], n_micro_batches: int, backlog: int) -> None:
        self.stages = stages
        self.backlog = backlog
        self.order: list[Action] = []
        self.live = 0
        """Activations that the rank holds, per stage and micro-batch."""
        self.forwards_left = n_micro_batches * len(stages)
        self.was_backward = False
        """Whether the last F or I was an I."""
        self.weights: deque[tuple[int, int]] = deque()
        """Pending W, as stage and micro-batch, in the order of their I."""


class _Pipeline:
    """The state of all ranks. Stages handle micro-batches in ascending order, so counts of finished passes suffice."""

    def __init__(self, rank_of: Sequence[int], n_micro_batches: int, rule: Rule, limit: int) -> None:
        self.n_micro_batches, self.rule, self.limit = n_micro_batches, rule, limit
        self.last = len(rank_of) - 1
        self.n_ranks = max(rank_of) + 1
        self.forwards = [0] * len(rank_of)
        self.backwards = [0] * len(rank_of)
        backlogs = {
            "none": lambda rank: 0,
            "ranks before": lambda rank: rank,
            "ranks after": lambda rank: self.n_ranks - 1 - rank,
        }
        self.ranks = [
            _Rank(
                tuple(stage for stage, holder in enumerate(rank_of) if holder == rank),
                n_micro_batches,
                backlogs[rule.backlog](rank),
            )
            for rank in range(self.n_ranks)
        ]

    def is_done(self) -> bool:
        return all(count == self.n_micro_batches for count in self.backwards) and not any(
            rank.weights for rank in self.ranks
        )

    def advance(self) -> bool:
        """Advance by one unit of time; false if no rank could run anything."""
        # All ranks choose before any of them acts: results of this unit are available only in the next one.
        choices = [(rank, self._choose(rank)) for rank in self.ranks]
        for rank, action in choices:
            if action is not None:
                self._do(rank, action)
        return any(action is not None for _, action in choices)

    def _choose(self, rank: _Rank) -> Action | None:
        # W is the only action that frees activations, so a growing backlog would use up the limit and stop forward
        # passes.
        if rank.forwards_left and len(rank.weights) > rank.backlog:
            return Action(rank.weights[0][0], ActionKind.BACKWARD_WEIGHT, rank.weights[0][1])
        forward, backward = self._next_forward(rank), self._next_backward(rank)
        if forward is not None and backward is not None:
            takes_forward = self.rule.forward == "first" or rank.was_backward
            return forward if takes_forward else backward
        if forward is None and backward is None and rank.weights:
            return Action(rank.weights[0][0], ActionKind.BACKWARD_WEIGHT, rank.weights[0][1])
        return backward if forward is None else forward

    def _next_forward(self, rank: _Rank) -> Action | None:
        ready = []
        for place, stage in enumerate(rank.stages):
            deeper = len(rank.stages) - 1 - place if self.rule.reserves_room else 0
            # Inputs that are available: all token ids, or what the stage before has finished.
            arrived = self.n_micro_batches if stage == 0 else self.forwards[stage - 1]
            if self.forwards[stage] < arrived and rank.live + deeper < self.limit:
                ready.append(stage)
        if not ready:
            return None
        if self.rule.forward_order == "deepest":
            stage = ready[-1]
        else:
            stage = min(ready, key=lambda stage: (self.forwards[stage] // self.n_ranks, stage))
        return Action(stage, ActionKind.FORWARD, self.forwards[stage])

    def _next_backward(self, rank: _Rank) -> Action | None:
        ready = []
        for stage in rank.stages:
            arrived = self.forwards[stage] if stage == self.last else self.backwards[stage + 1]
            if self.backwards[stage] < arrived:
                ready.append(stage)
        if not ready:
            return None
        stage = ready[-1] if self.rule.backward_order == "deepest" else ready[0]
        return Action(stage, ActionKind.BACKWARD_INPUT, self.backwards[stage])

    def _do(self, rank: _Rank, action: Action) -> None:
        rank.order.append(action)
        if action.kind is ActionKind.BACKWARD_WEIGHT:
            rank.weights.popleft()
            rank.live -= 1
            return
        rank.was_backward = action.kind is ActionKind.BACKWARD_INPUT
        if rank.was_backward:
            self.backwards[action.stage] += 1
            rank.weights.append((action.stage, action.micro_batch))
        else:
            self.forwards[action.stage] += 1
            rank.forwards_left -= 1
            rank.live += 1
