"""A process that samples leaves the processor to its trainer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from archon_core.ranks.priority import NICENESS, put_behind_caller

PRINTS_ON_INPUT = "import os, subprocess, sys; input(); subprocess.run([sys.executable, '-c', {child!r}])"
CHILD = "import os; print(os.getpriority(os.PRIO_PROCESS, 0))"


@pytest.mark.parametrize("session", [False, True])
def test_a_process_and_what_it_starts_come_after_the_caller(session):
    command = [sys.executable, "-c", PRINTS_ON_INPUT.format(child=CHILD)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=session
    ) as process:
        put_behind_caller(process.pid)
        group = Path(f"/proc/{process.pid}/autogroup")
        found = group.read_text(encoding="utf-8").split()[-1] if session and group.exists() else None
        printed, _ = process.communicate("\n", timeout=60)
    expected = min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
    assert int(printed) == expected
    assert found in (None, str(expected))


def test_a_process_that_has_ended_is_no_error():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(60)
    put_behind_caller(process.pid)
    assert os.getpriority(os.PRIO_PROCESS, 0) < 19
