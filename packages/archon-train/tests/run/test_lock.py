"""Two processes never write one run folder."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from archon_core.errors import ConfigError
from archon_train.run.folder import RunFolder
from archon_train.run.lock import sole_writer

HOLD = """
import sys, time
from archon_train.run.folder import RunFolder

with RunFolder.hold(sys.argv[1], "e", "t", resume=True) as folder, folder.writing(1) as writing:
    (writing / "weights").write_text("half")
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that is writing a checkpoint."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_that_another_process_writes_is_refused_and_left_alone(tmp_path, holder, resume):
    with (
        pytest.raises(ConfigError, match=f"process {holder.pid} on .* is writing to it; wait for it, stop it"),
        RunFolder.hold(tmp_path, "e", "t", resume=resume),
    ):
        pass
    writing = RunFolder.at(tmp_path, "e", "t").checkpoints / ".step-00000001.writing"
    assert (writing / "weights").read_text() == "half"


def test_a_process_that_was_killed_holds_nothing(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with RunFolder.hold(tmp_path, "e", "t", resume=True) as folder:
        assert list(folder.checkpoints.iterdir()) == [], "what it had begun is removed"


def test_a_folder_can_be_held_again_after_the_block(tmp_path):
    for _ in range(2):
        with RunFolder.hold(tmp_path, "e", "t") as folder:
            assert folder == RunFolder.at(tmp_path, "e", "t")


def test_a_file_system_without_locks_is_a_warning_only(tmp_path, monkeypatch, caplog):
    import fcntl

    def flock(*_):
        raise OSError("no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    with sole_writer(tmp_path):
        pass
    assert f"run folder {tmp_path}: cannot lock it against a second process" in caplog.text
