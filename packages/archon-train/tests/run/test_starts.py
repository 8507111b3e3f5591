"""The record of a run's starts: environment, and how each ended."""

from __future__ import annotations

import pytest

from archon_core.errors import ConfigError, DataError
from archon_core.run_files.starts import STARTS, read_starts
from archon_train.run.starts import describe_environment, record_total_steps, recorded_start


def start(folder, resumed_from=None, interrupted=False):
    return recorded_start(folder, resumed_from=resumed_from, interrupted=lambda: interrupted)


def test_a_start_is_recorded_at_once_and_its_end_when_it_ends(tmp_path):
    with start(tmp_path):
        [running] = read_starts(tmp_path)
        assert (running.ending, running.ended, running.resumed_from) == (None, "", None)
        assert running.environment["python"]
        assert running.environment["archon-core"]
    [finished] = read_starts(tmp_path)
    assert finished.ending == "finished"
    assert finished.ended >= finished.time


def test_the_number_of_steps_belongs_to_the_start_that_counted_them(tmp_path):
    record_total_steps(tmp_path, 3)
    assert read_starts(tmp_path) == []
    with start(tmp_path):
        record_total_steps(tmp_path, 7)
        assert read_starts(tmp_path)[0].total_steps == 7
    with start(tmp_path, resumed_from=2, interrupted=True):
        record_total_steps(tmp_path, 9)
    found = [(one.ending, one.total_steps, one.resumed_from) for one in read_starts(tmp_path)]
    assert found == [("finished", 7, None), ("interrupted", 9, 2)]


def test_failures_and_interruptions_are_endings_and_errors_go_on(tmp_path):
    with pytest.raises(ConfigError), start(tmp_path):
        raise ConfigError("actor.lr: found -1")
    with pytest.raises(KeyboardInterrupt), start(tmp_path, resumed_from=3):
        raise KeyboardInterrupt
    with start(tmp_path, resumed_from=5, interrupted=True):
        pass
    found = [(one.ending, one.error, one.resumed_from) for one in read_starts(tmp_path)]
    assert found == [("failed", "actor.lr: found -1", None), ("interrupted", "", 3), ("interrupted", "", 5)]


def test_a_new_run_does_not_continue_the_record_of_an_earlier_one(tmp_path):
    for _ in range(2):
        with start(tmp_path):
            pass
    assert len(read_starts(tmp_path)) == 1


def test_a_damaged_record_is_named_and_does_not_keep_a_run_from_resuming(tmp_path):
    (tmp_path / STARTS).write_text("{")
    with pytest.raises(DataError, match=r"starts\.json: found damaged content"):
        read_starts(tmp_path)
    with start(tmp_path, resumed_from=2):
        pass
    assert [one.resumed_from for one in read_starts(tmp_path)] == [2]


def test_programs_that_are_missing_or_fail_are_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no git repository
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "absent"))
    found = describe_environment()
    assert "git" not in found
    assert found["machine"]
