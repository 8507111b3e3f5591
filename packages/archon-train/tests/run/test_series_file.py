"""A file over steps stays bounded and evenly spread, also over resumptions and half-written lines."""

from __future__ import annotations

import json

import pytest

from archon_core.contracts.engine import StepRecording
from archon_core.errors import DataError
from archon_core.run_files.expert_load import ExpertLoad, find_loads, read_loads, render_load
from archon_train.run.recordings import Recordings
from archon_train.run.series_file import SeriesFile


def steps_of(path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def add(file: SeriesFile, steps) -> None:
    for step in steps:
        file.add(step, json.dumps({"step": step}))


def test_every_step_is_kept_until_the_file_is_full_then_every_second_fourth_and_so_on(tmp_path):
    path = tmp_path / "series.jsonl"
    file = SeriesFile(path, most=4)
    add(file, range(1, 5))
    assert steps_of(path) == [1, 2, 3, 4]
    add(file, [5])
    assert steps_of(path) == [1, 3, 5]
    add(file, range(6, 10))
    assert steps_of(path) == [1, 5, 9]
    add(file, range(10, 1000))
    assert steps_of(path) == [1, 257, 513, 769]


def test_a_resumed_run_continues_the_file_as_if_it_had_never_stopped(tmp_path):
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    add(SeriesFile(whole, most=4), range(1, 31))
    add(SeriesFile(resumed, most=4), range(1, 20))
    with resumed.open("a") as file:
        file.write('{"step": 25}\n{"st')
    add(SeriesFile(resumed, most=4), range(12, 31))
    assert steps_of(resumed) == steps_of(whole) == [1, 9, 17, 25]


def test_a_second_count_of_steps_replaces_the_first(tmp_path):
    path = tmp_path / "series.jsonl"
    file = SeriesFile(path, most=4)
    add(file, range(1, 20))
    add(file, [1, 2, 3])
    assert steps_of(path) == [1, 2, 3]


def test_recordings_of_a_series_become_a_file_that_reads_back(tmp_path):
    loads = [ExpertLoad(step, {"0": (step, 2), "1": (0, 3)}) for step in (1, 2)]
    recordings = Recordings(tmp_path)
    for load in loads:
        recordings.take([StepRecording("expert_load-actor.jsonl", render_load(load), series_step=load.step)])
    Recordings().take([StepRecording("expert_load-actor.jsonl", "on another rank", series_step=3)])
    [(role, path)] = find_loads(tmp_path).items()
    assert role == "actor"
    assert read_loads(path) == loads
    with path.open("a") as file:
        file.write('{"step": 3, "lay')
    assert read_loads(path) == loads
    path.write_text('{"step": 3}\n')
    with pytest.raises(DataError, match=r"line 1: found '\{\"step\": 3\}'"):
        read_loads(path)
