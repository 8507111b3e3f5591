"""A timeline says when each action of a pipeline ran, simulated or measured; bubble, peaks and sends follow from it."""

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
    """The actions of all ranks with their times.

    Attributes:
        ranks: per pipeline rank, its actions in order.
        rank_of: for each stage, the rank that holds it.
    """

    ranks: tuple[tuple[TimedAction, ...], ...]
    rank_of: tuple[int, ...]

    @property
    def end(self) -> float:
        """End of the last action; the step begins at 0."""
        return max((timed.end for rank in self.ranks for timed in rank), default=0.0)

    @property
    def bubble(self) -> float:
        """Idle time over busy time, both summed over ranks."""
        busy = sum(timed.end - timed.start for rank in self.ranks for timed in rank)
        return (len(self.ranks) * self.end - busy) / busy if busy else 0.0

    @property
    def actions(self) -> RankActions:
        """The action lists without their times."""
        return tuple(tuple(timed.action for timed in rank) for rank in self.ranks)


def count_peak_activations(actions: RankActions) -> tuple[int, ...]:
    """Per rank, the largest number of (stage, micro-batch) pairs whose activations are alive at the same time.

    Activations live from F to W, or to B for a whole backward pass. The peak depends on the order alone, not on times.
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
    """``count_peak_activations`` in units of all layers of a rank, so that schedules with different numbers of stages
    compare: with two stages per rank, the activations of one stage count half."""
    return tuple(peak * len(actions) / n_stages for peak in count_peak_activations(actions))


def count_sends(actions: RankActions, rank_of: Sequence[int]) -> tuple[int, ...]:
    """Per rank, the number of messages to other ranks: outputs of its stages, and gradients of their inputs."""
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
