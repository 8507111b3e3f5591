"""The run folder: places, refusal to mix runs, and checkpoints that are whole or absent."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from archon_core.contracts.decisions import Decision
from archon_core.errors import ConfigError
from archon_train.run.folder import RunFolder


def write_checkpoint(folder: RunFolder, step: int, text: str = "weights") -> None:
    with folder.writing(step) as path:
        (path / "model").mkdir()
        (path / "model" / "weights").write_text(text)


def test_a_run_has_a_folder_under_its_experiment_and_trial(tmp_path):
    folder = RunFolder.open(tmp_path, "arithmetic", "first")
    assert folder.path == tmp_path / "arithmetic" / "first"
    assert folder.checkpoints.is_dir()
    assert folder.latest_checkpoint() is None
    assert folder.latest_step() is None


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../elsewhere"])
@pytest.mark.parametrize("option", ["experiment_name", "trial_name"])
def test_a_name_that_would_leave_the_fileroot_is_refused(tmp_path, option, name):
    names = {"experiment_name": "e", "trial_name": "t"} | {option: name}
    with pytest.raises(ConfigError, match=f"{option}: found"):
        RunFolder.open(tmp_path, **names)


def test_a_fileroot_that_is_a_file_is_refused_with_the_option_to_set(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"set cluster\.fileroot"):
        RunFolder.open(tmp_path / "file", "e", "t")


def test_a_folder_that_holds_metrics_is_not_reused_unless_the_run_goes_on(tmp_path):
    RunFolder.open(tmp_path, "e", "t").metrics.write_text('{"step": 1}\n')
    with pytest.raises(
        ConfigError, match=r"metrics\.jsonl.*--resume, rename it with --restart, or choose another trial_name"
    ):
        RunFolder.open(tmp_path, "e", "t")
    assert RunFolder.open(tmp_path, "e", "t", resume=True).metrics.read_text() == '{"step": 1}\n'


def test_a_folder_that_holds_a_checkpoint_is_not_reused(tmp_path):
    write_checkpoint(RunFolder.open(tmp_path, "e", "t"), 20)
    with pytest.raises(ConfigError, match="a checkpoint of step 20"):
        RunFolder.open(tmp_path, "e", "t")


def test_a_folder_of_a_run_that_wrote_no_number_is_reused(tmp_path):
    first = RunFolder.open(tmp_path, "e", "t")
    first.write_config("seed: 1\n")
    first.metrics.write_text("")
    second = RunFolder.open(tmp_path, "e", "t")
    second.write_config("seed: 2\n")
    assert second.config.read_text() == "seed: 2\n"


def test_the_latest_checkpoint_is_that_of_the_highest_step(tmp_path):
    folder = RunFolder.open(tmp_path, "e", "t")
    for step in (9, 100, 20):
        write_checkpoint(folder, step)
    assert folder.checkpoint_steps() == [9, 20, 100]
    assert folder.latest_checkpoint() == folder.checkpoint_path(100)
    assert (folder.checkpoint_path(100) / "model" / "weights").read_text() == "weights"


def test_other_things_in_the_checkpoints_folder_are_no_checkpoints(tmp_path):
    folder = RunFolder.open(tmp_path, "e", "t")
    (folder.checkpoints / "step-00000030.bak").mkdir()
    (folder.checkpoints / "step-00000031").write_text("a file")
    assert folder.latest_step() is None


def test_a_checkpoint_is_not_there_while_it_is_written(tmp_path):
    folder = RunFolder.open(tmp_path, "e", "t")
    with folder.writing(1) as path:
        (path / "weights").write_text("half")
        assert folder.latest_step() is None
        assert path.parent == folder.checkpoints
    assert folder.latest_step() == 1


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_last_checkpoint_and_nothing_else(tmp_path, error):
    def write_half(step):
        with folder.writing(step) as path:
            (path / "weights").write_text("half")
            raise error

    folder = RunFolder.open(tmp_path, "e", "t")
    write_checkpoint(folder, 1)
    with pytest.raises(type(error)):
        write_half(2)
    assert [entry.name for entry in folder.checkpoints.iterdir()] == ["step-00000001"]


def test_a_write_that_fails_over_an_existing_checkpoint_leaves_the_old_one(tmp_path):
    folder = RunFolder.open(tmp_path, "e", "t")
    write_checkpoint(folder, 1, "old")
    with pytest.raises(OSError, match="disk full"), folder.writing(1):
        raise OSError("disk full")
    assert (folder.checkpoint_path(1) / "model" / "weights").read_text() == "old"


def test_a_checkpoint_of_the_same_step_replaces_the_old_one(tmp_path):
    folder = RunFolder.open(tmp_path, "e", "t")
    write_checkpoint(folder, 1, "old")
    with folder.writing(1) as path:
        (path / "weights").write_text("new")
    assert [entry.name for entry in folder.checkpoint_path(1).iterdir()] == ["weights"]
    assert len(list(folder.checkpoints.iterdir())) == 1


CRASH = """
import os, sys
from pathlib import Path
from archon_train.run.folder import RunFolder

folder = RunFolder.open(sys.argv[1], "e", "t", resume=True)
moment = sys.argv[2]
rename = Path.rename

def dying_rename(self, target):
    if moment == "before the old one is moved away" or (
        moment == "between the renames" and self.name.endswith(".writing")
    ):
        os._exit(9)
    result = rename(self, target)
    if moment == "before the old one is removed" and self.name.endswith(".writing"):
        os._exit(9)
    return result

Path.rename = dying_rename
with folder.writing(1) as path:
    (path / "weights").write_text("new")
    if moment == "in the middle of writing":
        os._exit(9)
"""


@pytest.mark.parametrize(
    ("moment", "holds"),
    [
        ("in the middle of writing", "old"),
        ("before the old one is moved away", "old"),
        ("between the renames", "old"),
        ("before the old one is removed", "new"),
    ],
)
def test_a_process_that_dies_leaves_a_whole_checkpoint(tmp_path, moment, holds):
    folder = RunFolder.open(tmp_path, "e", "t")
    with folder.writing(1) as path:
        (path / "weights").write_text("old")
    died = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path), moment], check=False)
    assert died.returncode == 9
    assert len(list(folder.checkpoints.iterdir())) == 2
    folder = RunFolder.open(tmp_path, "e", "t", resume=True)
    assert [entry.name for entry in folder.checkpoints.iterdir()] == ["step-00000001"]
    assert (folder.checkpoint_path(1) / "weights").read_text() == holds


def test_files_and_folders_are_forced_to_disk_before_the_rename(tmp_path, monkeypatch):
    folder = RunFolder.open(tmp_path, "e", "t")
    flushed = []

    def record(descriptor):
        flushed.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))

    monkeypatch.setattr(os, "fsync", record)
    write_checkpoint(folder, 1)
    assert sorted(flushed[:-1]) == [".step-00000001.writing", "model", "weights"]
    assert flushed[-1] == "checkpoints"


def test_an_export_appears_whole_and_replaces_an_earlier_one(tmp_path):
    folder = RunFolder.open(tmp_path, "e", "t")
    for text in ("first", "second"):
        with folder.exporting() as path:
            (path / "config.json").write_text(text)
            assert not (folder.export / "config.json").exists() or text == "second"
    assert (folder.export / "config.json").read_text() == "second"


def test_decisions_are_written_as_objects(tmp_path):
    folder = RunFolder.open(tmp_path, "e", "t")
    folder.write_decisions([Decision("actor.archon.enable_compile", "true", "false", "the device is a CPU")])
    assert json.loads(folder.decisions.read_text()) == [
        {
            "option": "actor.archon.enable_compile",
            "requested": "true",
            "effective": "false",
            "reason": "the device is a CPU",
        }
    ]
