"""The recording of a pipeline step, ``pipeline-<role>.json``: when each action ran. Written by archon-pipeline."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from archon_core.contracts.pipeline import RECORDING_PREFIX, Action, ActionKind, TimedActions
from archon_core.errors import ConfigError, PluginError

FORMAT = 1


@dataclass(frozen=True)
class RecordedStep:
    """One measured step.

    Attributes:
        schedule: name of the schedule.
        n_micro_batches: micro-batches of the step.
        step: number of the optimizer step.
        ranks: per pipeline rank, its actions with start and end, in seconds since the step began.
        rank_of: for each stage, the rank that holds it.
    """

    schedule: str
    n_micro_batches: int
    step: int
    ranks: TimedActions
    rank_of: tuple[int, ...]

    def mean_times(self) -> list[dict[ActionKind, float]]:
        """For each stage, the mean time of each kind of action; 0 for a kind that does not occur on it."""
        times: defaultdict[tuple[int, ActionKind], list[float]] = defaultdict(list)
        for rank in self.ranks:
            for action, start, end in rank:
                times[action.stage, action.kind].append(end - start)
        return [
            {kind: fmean(times[stage, kind]) if (stage, kind) in times else 0.0 for kind in ActionKind}
            for stage in range(len(self.rank_of))
        ]


def find_recordings(run_folder: Path) -> dict[str, Path]:
    """Role -> path of its recording, for all recordings in a run folder."""
    paths = sorted(run_folder.glob(f"{RECORDING_PREFIX}*.json"))
    return {path.stem.removeprefix(RECORDING_PREFIX): path for path in paths}


def read_recording(path: Path) -> RecordedStep:
    """Read a recording.

    Raises:
        ConfigError: the file is missing or is not a recording.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot read the recording ({error}); record the run again") from error
    return parse_recording(text, source=str(path))


def parse_recording(text: str, *, source: str) -> RecordedStep:
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
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = f"format {content.get('format')!r}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ConfigError(
            f"{source}: found {found}; allowed is a recording of format {FORMAT}; record the run again with this "
            "version"
        )
    try:
        return _from_content(content)
    except (KeyError, TypeError, ValueError, PluginError) as error:
        raise ConfigError(
            f"{source}: found an invalid recording ({type(error).__name__}: {error}); record the run again"
        ) from error


def _from_content(content: dict[str, Any]) -> RecordedStep:
    rank_of = tuple(int(rank) for rank in content["rank_of"])
    ranks = tuple(
        tuple((Action.parse(text), float(start), float(end)) for text, start, end in rank) for rank in content["ranks"]
    )
    if any(action.stage >= len(rank_of) for rank in ranks for action, _, _ in rank) or not any(ranks):
        raise ValueError("an action names a stage that rank_of lacks, or there are no actions")
    if any(not 0 <= holder < len(ranks) for holder in rank_of):
        raise ValueError("rank_of names a rank without a list of actions")
    if not all(-math.inf < start <= end < math.inf for rank in ranks for _, start, end in rank):
        raise ValueError("an action ends before it starts, or a time is not finite")
    return RecordedStep(
        schedule=str(content["schedule"]),
        n_micro_batches=int(content["n_micro_batches"]),
        step=int(content["step"]),
        ranks=ranks,
        rank_of=rank_of,
    )
