"""When each action of a pipeline ran, as simulated or as measured, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from archon_core.contracts.pipeline import Action, ActionKind, RankActions


@dataclass(frozen=True)
class TimedAction:
    """An action with its start and end."""

    action: Action
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """What each rank did when.

    Attributes:
        ranks: per pipeline rank, its actions in order.
        rank_of: for each stage, the rank that holds it.
    """

    ranks: tuple[tuple[TimedAction, ...], ...]
    rank_of: tuple[int, ...]

    @property
    def end(self) -> float:
        """When the last action ends; the step begins at 0."""
        return max((timed.end for rank in self.ranks for timed in rank), default=0.0)

    @property
    def bubble(self) -> float:
        """Time in which ranks wait over time in which they work, summed over ranks: idle over ideal time."""
        busy = sum(timed.end - timed.start for rank in self.ranks for timed in rank)
        return (len(self.ranks) * self.end - busy) / busy if busy else 0.0

    @property
    def actions(self) -> RankActions:
        """The actions alone."""
        return tuple(tuple(timed.action for timed in rank) for rank in self.ranks)


def count_peak_activations(actions: RankActions) -> tuple[int, ...]:
    """Per rank, for how many (stage, micro-batch) at most activations live at once.

    They live from F to W, or to B where the backward pass is whole. The order alone decides it.
    """
    peaks = []
    for rank in actions:
        live = peak = 0
        for action in rank:
            if action.kind is ActionKind.FORWARD:
                live += 1
                peak = max(peak, live)
            elif action.kind is not ActionKind.BACKWARD_INPUT:
                live -= 1
        peaks.append(peak)
    return tuple(peaks)


def weigh_peak_activations(actions: RankActions, n_stages: int) -> tuple[float, ...]:
    """The same in units of a rank's whole share of the layers, so that schedules with other numbers of stages compare:
    with two stages per rank, one stage's activations count half."""
    return tuple(peak * len(actions) / n_stages for peak in count_peak_activations(actions))


def count_sends(actions: RankActions, rank_of: Sequence[int]) -> tuple[int, ...]:
    """Per rank, how many messages it sends to other ranks: outputs of stages and gradients of their inputs."""
    last = len(rank_of) - 1
    counts = []
    for rank, own in enumerate(actions):
        count = 0
        for action in own:
            if action.kind is ActionKind.FORWARD:
                count += action.stage < last and rank_of[action.stage + 1] != rank
            elif action.kind is not ActionKind.BACKWARD_WEIGHT:
                count += action.stage > 0 and rank_of[action.stage - 1] != rank
        counts.append(count)
    return tuple(counts)
