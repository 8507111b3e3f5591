"""Ctrl-C and SIGTERM end `archon verify --all` with every rank that it started, and all that it wrote."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def running():
    """Process -> its parent. Zombies have ended; whoever adopted one may be slow to collect it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(stat.parent.name)] = int(fields[1])
    return parents


def descendants(pid):
    """Processes below ``pid``."""
    parents = running()
    found, added = set(), {pid}
    while added:
        added = {child for child, parent in parents.items() if parent in added} - found
        found |= added
    return found


def wait_for_ranks(pid, folder):
    """All processes of a verification, once four ranks of layouts run beside the forkserver and its tracker."""
    ends = time.monotonic() + 120
    while time.monotonic() < ends:
        found = descendants(pid)
        if len(found) >= 6 and list(folder.glob("archon-verify-*/cases-*")):
            return found
        time.sleep(0.1)
    raise AssertionError("no ranks of layouts ever started")


@pytest.mark.slow
@pytest.mark.wide
@pytest.mark.parametrize(
    ("send", "number", "code"),
    [
        pytest.param(os.killpg, signal.SIGINT, 130, id="Ctrl-C"),
        pytest.param(os.kill, signal.SIGTERM, 143, id="SIGTERM"),
    ],
)
def test_an_interrupted_verification_leaves_no_process_and_no_file(tmp_path, send, number, code):
    program = "from archon_core.cli.main import main; main()"
    command = [sys.executable, "-c", program, "verify", "qwen3", "--all", "--world", "4"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            started = wait_for_ranks(process.pid, tmp_path)
            send(process.pid, number)
            output, _ = process.communicate(timeout=180)
        finally:
            process.kill()
    assert process.returncode == code
    ends = time.monotonic() + 20
    while (left := started & running().keys()) and time.monotonic() < ends:
        time.sleep(0.1)
    assert left == set(), output.decode()
    assert list(tmp_path.glob("archon-*")) == []
