"""The recording of a pipeline step: the measured times of all actions, in ``<run folder>/pipeline-<role>.json``.

Training writes it, ``archon pipeline show --run`` reads it. Imports no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from archon_core.contracts.pipeline import ActionKind
from archon_core.run_files import pipeline
from archon_core.run_files.pipeline import RecordedStep
from archon_pipeline.costs import Costs, StageCosts
from archon_pipeline.timeline import TimedAction, Timeline


@dataclass(frozen=True)
class Recording:
    """One measured step.

    Attributes:
        schedule: name of the schedule.
        n_micro_batches: micro-batches of the step.
        step: number of the optimizer step.
        timeline: all pipeline ranks, in seconds since the step began.
    """

    schedule: str
    n_micro_batches: int
    step: int
    timeline: Timeline

    @classmethod
    def of(cls, recorded: RecordedStep) -> Recording:
        """The recording with its actions as a timeline."""
        ranks = tuple(tuple(TimedAction(*timed) for timed in rank) for rank in recorded.ranks)
        timeline = Timeline(ranks, recorded.rank_of)
        return cls(recorded.schedule, recorded.n_micro_batches, recorded.step, timeline)

    def mean_costs(self) -> Costs:
        """The mean time of each kind of action on each stage; 0 for a kind that does not occur on a stage."""
        ranks = tuple(tuple((t.action, t.start, t.end) for t in rank) for rank in self.timeline.ranks)
        recorded = RecordedStep(self.schedule, self.n_micro_batches, self.step, ranks, self.timeline.rank_of)
        return Costs(
            tuple(
                StageCosts(
                    forward=means[ActionKind.FORWARD],
                    backward_input=means[ActionKind.BACKWARD_INPUT],
                    backward_weight=means[ActionKind.BACKWARD_WEIGHT],
                    backward=means[ActionKind.BACKWARD],
                )
                for means in recorded.mean_times()
            )
        )


def render_recording(recording: Recording) -> str:
    """The content of a recording's file."""
    content = {
        "format": pipeline.FORMAT,
        "schedule": recording.schedule,
        "rank_of": list(recording.timeline.rank_of),
        "n_micro_batches": recording.n_micro_batches,
        "step": recording.step,
        "ranks": [
            [[str(timed.action), round(timed.start, 9), round(timed.end, 9)] for timed in rank]
            for rank in recording.timeline.ranks
        ],
    }
    return json.dumps(content) + "\n"


def read_recording(path: Path) -> Recording:
    """Read a recording.

    Raises:
        ConfigError: the file is missing or is not a recording.
    """
    return Recording.of(pipeline.read_recording(path))
