"""A view of a pipeline: a timeline with a heading and the numbers that summarise it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from archon_core.contracts.pipeline import Action, ActionKind
from archon_pipeline.palette import MEANING
from archon_pipeline.timeline import Timeline, count_peak_activations, count_sends, weigh_peak_activations


@dataclass(frozen=True)
class RankSummary:
    """One rank in numbers.

    Attributes:
        stages: the stages it holds.
        waits: time in which it is idle.
        peak: most live activations, counted per stage and micro-batch.
        share: most live activations in units of all layers of the rank.
        sends: messages to other ranks.
    """

    stages: tuple[int, ...]
    waits: float
    peak: int
    share: float
    sends: int


@dataclass(frozen=True)
class View:
    """A timeline with a heading.

    Attributes:
        name: ``planned`` or ``measured``; empty for a single view.
        timeline: when each action runs.
        unit: unit of time, ``ms``; empty for units of cost.
    """

    name: str
    timeline: Timeline
    unit: str = ""

    @property
    def kinds(self) -> tuple[ActionKind, ...]:
        """Kinds of actions that occur, in legend order."""
        present = {action.kind for rank in self.timeline.actions for action in rank}
        return tuple(kind for kind in MEANING if kind in present)

    @property
    def stages_per_rank(self) -> int:
        """Most stages of any rank."""
        return max(len(held) for held in self._held())

    @property
    def n_micro_batches(self) -> int:
        """Micro-batches of the step."""
        return 1 + max((action.micro_batch for rank in self.timeline.actions for action in rank), default=0)

    def place(self, action: Action) -> int:
        """Index of the action's stage among the stages of its rank, from 0."""
        rank_of = self.timeline.rank_of
        return rank_of[: action.stage].count(rank_of[action.stage])

    def summarise_ranks(self) -> list[RankSummary]:
        """One row per rank."""
        timeline = self.timeline
        actions = timeline.actions
        columns = zip(
            self._held(),
            timeline.ranks,
            count_peak_activations(actions),
            weigh_peak_activations(actions, len(timeline.rank_of)),
            count_sends(actions, timeline.rank_of),
            strict=True,
        )
        return [
            RankSummary(held, timeline.end - sum(timed.end - timed.start for timed in rank), peak, share, sends)
            for held, rank, peak, share, sends in columns
        ]

    def describe(self) -> str:
        """Bubble, peak activations and sends of the whole pipeline, on one line."""
        ranks = self.summarise_ranks()
        waits = sum(rank.waits for rank in ranks) / len(ranks)
        start = f"{self.name}: " if self.name else ""
        unit = f" {self.unit}" if self.unit else ""
        times = f"waits {format_number(waits)}, works {format_number(self.timeline.end - waits)}{unit}"
        return (
            f"{start}bubble {self.timeline.bubble:.4f} ({times}), "
            f"peak {format_number(max(rank.share for rank in ranks))} x a rank's layers, "
            f"{sum(rank.sends for rank in ranks)} sends"
        )

    def _held(self) -> list[tuple[int, ...]]:
        rank_of = self.timeline.rank_of
        return [
            tuple(stage for stage, holder in enumerate(rank_of) if holder == rank)
            for rank in range(len(self.timeline.ranks))
        ]


def shortest_labelled(views: Sequence[View]) -> float:
    """Duration of the shortest actions whose labels a drawing keeps readable, which sets its scale.

    Measured times have outliers, so the shortest tenth of the actions may be unreadable.
    """
    times = sorted(timed.end - timed.start for view in views for rank in view.timeline.ranks for timed in rank)
    return next((time for time in times[len(times) // 10 :] if time > 0), 1.0)


def round_step(least: float) -> float:
    """The smallest of ..., 0.5, 1, 2, 5, 10, ... that is at least ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def format_number(number: float) -> str:
    """Four significant digits, or all digits before the decimal point if there are more."""
    return f"{number:.0f}" if abs(number) >= 1000 else f"{number:.4g}"
