"""What is shown of a pipeline: one or more timelines with the numbers that describe them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from archon_core.contracts.pipeline import Action, ActionKind
from archon_pipeline.palette import MEANING
from archon_pipeline.timeline import Timeline, count_peak_activations, count_sends, weigh_peak_activations


@dataclass(frozen=True)
class RankSummary:
    """One rank in numbers.

    Attributes:
        stages: it holds.
        waits: time in which it does nothing.
        peak: activations, counted per stage and micro-batch.
        share: the same in units of all its stages.
        sends: messages.
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
        name: ``planned`` or ``measured``; empty when there is only one.
        timeline: when each action runs.
        unit: of time: empty for units of cost, or ``ms``.
    """

    name: str
    timeline: Timeline
    unit: str = ""

    @property
    def kinds(self) -> tuple[ActionKind, ...]:
        """Kinds of actions that occur, in the order of legends."""
        present = {action.kind for rank in self.timeline.actions for action in rank}
        return tuple(kind for kind in MEANING if kind in present)

    @property
    def stages_per_rank(self) -> int:
        """How many stages the rank that holds most has."""
        return max(len(held) for held in self._held())

    @property
    def n_micro_batches(self) -> int:
        """Of the step."""
        return 1 + max((action.micro_batch for rank in self.timeline.actions for action in rank), default=0)

    def place(self, action: Action) -> int:
        """Which of its rank's stages an action belongs to: 0 for the first."""
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
        """Bubble, peak activations and sends of the whole pipeline in a line."""
        ranks = self.summarise_ranks()
        waits = sum(rank.waits for rank in ranks) / len(ranks)
        start = f"{self.name}: " if self.name else ""
        return (
            f"{start}bubble {self.timeline.bubble:.4f} (waits {short(waits)}, works {short(self.timeline.end - waits)}"
            f"{self.unit and ' '}{self.unit}), peak {short(max(rank.share for rank in ranks))} x a rank's layers, "
            f"{sum(rank.sends for rank in ranks)} sends"
        )

    def _held(self) -> list[tuple[int, ...]]:
        rank_of = self.timeline.rank_of
        return [
            tuple(stage for stage, holder in enumerate(rank_of) if holder == rank)
            for rank in range(len(self.timeline.ranks))
        ]


def round_step(least: float) -> float:
    """The next of ..., 0.5, 1, 2, 5, 10, ... that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def short(number: float) -> str:
    """Four digits, or all digits before the point where there are more."""
    return f"{number:.0f}" if abs(number) >= 1000 else f"{number:.4g}"
