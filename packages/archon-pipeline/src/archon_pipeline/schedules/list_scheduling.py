"""List scheduling: how the zero-bubble schedules are found.

Time passes in units; in each, every idle rank takes, of the actions whose inputs are there, the one that a ``Rule``
puts first. F, I and W take a unit each. Memory is bounded: a rank starts no forward pass while it holds ``limit``
activations, so W is done when there is room to make. Of the lists that a few rules give, the best one is kept.
Everything is deterministic: all ranks find the same lists.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from archon_core.contracts.pipeline import Action, ActionKind, RankActions
from archon_pipeline.costs import Costs, StageCosts
from archon_pipeline.schedules.whole_backward import join_halves
from archon_pipeline.simulator import simulate
from archon_pipeline.timeline import count_peak_activations

_TYPICAL = StageCosts(forward=1.0, backward_input=1.25, backward_weight=1.0, backward=2.0)
_FIRST = StageCosts(forward=1.0, backward_input=0.0, backward_weight=2.0)
_LAST = StageCosts(forward=1.0, backward_input=2.0, backward_weight=0.0)
_MESSAGE = 0.1
"""Of two lists that are equally good in units, the better one here is kept. Gradients of inputs take a bit longer than
those of weights (attention has none), and halves longer than a whole. The first stage's input has no gradient, so the
runner leaves all to W; on the last it does all in I, lest the head is computed twice."""


@dataclass(frozen=True)
class Rule:
    """What a rank does first when it could do several things.

    Attributes:
        forward: F before I, or both in turns. W comes last, but see ``backlog``.
        forward_order: the deepest of the rank's stages first, or stages by rounds of as many micro-batches as ranks.
        backward_order: the deepest or the shallowest stage first.
        backlog: how many W may be left undone while there are forward passes to come: none, or as many as there are
            ranks in front or behind. Later ones are done where the rank would wait.
        keeps_room: leaves room for a micro-batch's forward passes through the rank's deeper stages.
    """

    forward: Literal["first", "in turns"]
    forward_order: Literal["deepest", "rounds"]
    backward_order: Literal["deepest", "shallowest"]
    backlog: Literal["none", "in front", "behind"]
    keeps_room: bool = False


def find_schedule(rank_of: Sequence[int], n_micro_batches: int, rules: Sequence[Rule], limit: int) -> RankActions:
    """The best lists that ``rules`` give.

    Those that are shortest in units; of these, with the fewest activations; of these, shortest at typical costs.

    Args:
        rank_of: for each stage, the rank that holds it; every rank holds as many.
        n_micro_batches: of the step.
        rules: what to try.
        limit: activations, counted per stage and micro-batch, that a rank may hold. It grows when no rule gets through.
    """
    found: list[RankActions] = []
    while not found:
        tries = (apply_rule(rank_of, n_micro_batches, rule, limit) for rule in rules)
        found = [join_halves(actions, rank_of) for actions in tries if actions is not None]
        limit += 1
    typical = Costs((_FIRST, *(_TYPICAL for _ in rank_of[2:]), _LAST), message=_MESSAGE)
    return min(
        found,
        key=lambda actions: (
            simulate(actions, rank_of).end,
            max(count_peak_activations(actions)),
            simulate(actions, rank_of, typical).end,
        ),
    )


def apply_rule(rank_of: Sequence[int], n_micro_batches: int, rule: Rule, limit: int) -> RankActions | None:
    """The lists that one rule gives, all backward passes split; ``None`` when every rank waits and none has room."""
    pipeline = _Pipeline(rank_of, n_micro_batches, rule, limit)
    while not pipeline.is_done():
        if not pipeline.advance():
            return None
    return tuple(tuple(rank.order) for rank in pipeline.ranks)


class _Rank:
    """What one rank has done."""

    def __init__(self, stages: tuple[int, ...], n_micro_batches: int, backlog: int) -> None:
        self.stages = stages
        self.backlog = backlog
        self.order: list[Action] = []
        self.live = 0
        self.forwards_left = n_micro_batches * len(stages)
        self.was_backward = False
        """Whether the last action that was not W was I."""
        self.weights: deque[tuple[int, int]] = deque()
        """Stages and micro-batches whose W is to come."""


class _Pipeline:
    """All ranks at a moment. Results of a stage come in the order of micro-batches, so counting them is enough."""

    def __init__(self, rank_of: Sequence[int], n_micro_batches: int, rule: Rule, limit: int) -> None:
        self.n_micro_batches, self.rule, self.limit = n_micro_batches, rule, limit
        self.last = len(rank_of) - 1
        self.n_ranks = max(rank_of) + 1
        self.forwards = [0] * len(rank_of)
        self.backwards = [0] * len(rank_of)
        backlogs = {
            "none": lambda rank: 0,
            "in front": lambda rank: rank,
            "behind": lambda rank: self.n_ranks - 1 - rank,
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
        """One unit of time; false when no rank could do anything."""
        choices = [(rank, self._choose(rank)) for rank in self.ranks]
        for rank, action in choices:
            if action is not None:
                self._do(rank, action)
        return any(action is not None for _, action in choices)

    def _choose(self, rank: _Rank) -> Action | None:
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
            deeper = len(rank.stages) - 1 - place if self.rule.keeps_room else 0
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
