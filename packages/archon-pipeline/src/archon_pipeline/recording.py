"""The recording of a pipeline step: the measured times of all actions, in ``<run folder>/pipeline-<role>.json``.

Training writes it, ``archon pipeline show --run`` reads it. Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from archon_core.contracts.pipeline import RECORDING_PREFIX, Action, ActionKind
from archon_core.errors import ConfigError, PluginError
from archon_pipeline.costs import Costs, StageCosts
from archon_pipeline.timeline import TimedAction, Timeline

_FORMAT = 1


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

    def mean_costs(self) -> Costs:
        """The mean time of each kind of action on each stage; 0 for a kind that does not occur on a stage."""
        times: defaultdict[tuple[int, ActionKind], list[float]] = defaultdict(list)
        for rank in self.timeline.ranks:
            for timed in rank:
                times[timed.action.stage, timed.action.kind].append(timed.end - timed.start)
        means = {key: fmean(found) for key, found in times.items()}

        def mean(stage: int, kind: ActionKind) -> float:
            return means.get((stage, kind), 0.0)

        return Costs(
            tuple(
                StageCosts(
                    forward=mean(stage, ActionKind.FORWARD),
                    backward_input=mean(stage, ActionKind.BACKWARD_INPUT),
                    backward_weight=mean(stage, ActionKind.BACKWARD_WEIGHT),
                    backward=mean(stage, ActionKind.BACKWARD),
                )
                for stage in range(len(self.timeline.rank_of))
            )
        )


def find_recordings(run_folder: Path) -> dict[str, Path]:
    """Role -> path of its recording, for all recordings in a run folder."""
    paths = sorted(run_folder.glob(f"{RECORDING_PREFIX}*.json"))
    return {path.stem.removeprefix(RECORDING_PREFIX): path for path in paths}


def render_recording(recording: Recording) -> str:
    """The content of a recording's file."""
    content = {
        "format": _FORMAT,
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
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot read the recording ({error}); record the run again") from error
    return parse_recording(text, source=str(path))


def parse_recording(text: str, *, source: str) -> Recording:
    """Parse the content of a recording.

    Args:
        text: the content.
        source: name of its origin, for messages.

    Raises:
        ConfigError: the text is not a recording.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{source}: cannot read the recording ({error}); record the run again") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        found = f"format {content.get('format')!r}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ConfigError(
            f"{source}: found {found}; allowed is a recording of format {_FORMAT}; record the run again with this "
            "version"
        )
    try:
        return _from_content(content)
    except (KeyError, TypeError, ValueError, PluginError) as error:
        raise ConfigError(
            f"{source}: found an invalid recording ({type(error).__name__}: {error}); record the run again"
        ) from error


def _from_content(content: dict[str, Any]) -> Recording:
    rank_of = tuple(int(rank) for rank in content["rank_of"])
    ranks = tuple(
        tuple(TimedAction(Action.parse(text), float(start), float(end)) for text, start, end in rank)
        for rank in content["ranks"]
    )
    if any(timed.action.stage >= len(rank_of) for rank in ranks for timed in rank) or not any(ranks):
        raise ValueError("an action names a stage that rank_of lacks, or there are no actions")
    if any(not 0 <= holder < len(ranks) for holder in rank_of):
        raise ValueError("rank_of names a rank without a list of actions")
    if not all(-math.inf < timed.start <= timed.end < math.inf for rank in ranks for timed in rank):
        raise ValueError("an action ends before it starts, or a time is not finite")
    return Recording(
        schedule=str(content["schedule"]),
        n_micro_batches=int(content["n_micro_batches"]),
        step=int(content["step"]),
        timeline=Timeline(ranks, rank_of),
    )
