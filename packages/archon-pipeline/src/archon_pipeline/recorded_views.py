"""Reads the recorded step of a run and replays its actions with their mean measured times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from archon_core.errors import ConfigError
from archon_core.run_files.pipeline import find_recordings
from archon_pipeline.recording import read_recording
from archon_pipeline.simulator import simulate
from archon_pipeline.timeline import TimedAction, Timeline
from archon_pipeline.view import View


def recorded_views(run: Path, role: str | None, planning: Sequence[str]) -> tuple[str, list[View]]:
    """The title, and the planned and the measured timeline, in milliseconds.

    Args:
        run: the run folder.
        role: whose recording; ``None`` when there is only one.
        planning: given options that do not apply to a recording.

    Raises:
        ConfigError: the recording is missing or invalid, or ``planning`` is not empty.
        PluginError: its actions deadlock.
    """
    if planning:
        raise ConfigError(
            f"--run: found {', '.join(planning)} beside it; allowed with --run are --role and --svg; leave the others "
            "out: the recording contains them"
        )
    found = find_recordings(run)
    if not found:
        what = "no recording in it (pipeline-ROLE.json)" if run.is_dir() else "no such folder"
        raise ConfigError(
            f"--run: found {str(run)!r}, {what}; allowed is the folder of a run with pipeline parallelism that "
            "recorded a step; give its folder, which holds config.yaml"
        )
    if role is None and len(found) == 1:
        (role,) = found
    if role is None or role not in found:
        asked = f"role {role!r}" if role is not None else f"recordings of {len(found)} engines"
        raise ConfigError(f"--run: found {asked}; allowed are {', '.join(found)}; choose by --role {next(iter(found))}")
    recording = read_recording(found[role])
    measured = recording.timeline
    planned = simulate(measured.actions, measured.rank_of, recording.mean_costs())
    title = (
        f"{recording.schedule}: {role}, step {recording.step}, {len(measured.ranks)} ranks, "
        f"{recording.n_micro_batches} micro-batches"
    )
    return title, [
        View("planned", _in_milliseconds(planned), "ms"),
        View("measured", _in_milliseconds(measured), "ms"),
    ]


def _in_milliseconds(timeline: Timeline) -> Timeline:
    return Timeline(
        tuple(tuple(TimedAction(t.action, t.start * 1e3, t.end * 1e3) for t in rank) for rank in timeline.ranks),
        timeline.rank_of,
    )
