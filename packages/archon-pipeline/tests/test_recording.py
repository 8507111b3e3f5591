"""The file format of a recorded step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from archon_core.contracts.pipeline import Action
from archon_core.errors import ConfigError
from archon_core.run_files.pipeline import find_recordings
from archon_pipeline.recording import Recording, read_recording, render_recording
from archon_pipeline.timeline import TimedAction, Timeline


def timed(text: str, start: float, end: float) -> TimedAction:
    return TimedAction(Action.parse(text), start, end)


STEP = Recording(
    "1F1B",
    2,
    7,
    Timeline(
        (
            (timed("0F0", 0, 1), timed("0F1", 1, 4), timed("0B0", 6, 8), timed("0B1", 9, 11)),
            (timed("1F0", 1.5, 2), timed("1I0", 2, 3), timed("1W0", 3, 4), timed("1F1", 4, 5), timed("1B1", 5, 8)),
        ),
        (0, 1),
    ),
)


def test_a_recording_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "pipeline-actor.json"
    path.write_text(render_recording(STEP))
    assert find_recordings(tmp_path) == {"actor": path}
    assert read_recording(path) == STEP


def test_mean_costs_are_those_of_each_kind_on_each_stage() -> None:
    first, second = STEP.mean_costs().stages
    assert (first.forward, first.backward) == (2.0, 2.0)
    assert (second.forward, second.backward_input, second.backward_weight, second.backward) == (0.75, 1.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read the recording"),
        ("[]", "found a list; allowed is a recording of format 1"),
        ('{"format": 2}', "found format 2; allowed is a recording of format 1"),
        ('{"format": 1}', "invalid recording .*; record the run again"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "pipeline-actor.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_recording(path)


def test_a_recording_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pipeline-actor.json"
    content = json.loads(render_recording(STEP))
    rank = [["0F0", 0, 1]]
    for change in (
        {"rank_of": [0]},
        {"rank_of": [0, 2]},
        {"ranks": []},
        {"ranks": [[["0X0", 0, 1]], []]},
        {"ranks": [rank, [["1F0", 1, 0]]]},
        {"ranks": [rank, [["1F0", 1, float("nan")]]]},
        {"ranks": [rank, [["1F0", 1, float("inf")]]]},
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(ConfigError, match="invalid recording"):
            read_recording(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the recording"):
        read_recording(tmp_path / "pipeline-actor.json")
