"""What the tests look at from outside: which processes are there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that has ended stays until its parent, the forkserver, has asked for its exit code.
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def assert_gone() -> Callable[[Path], None]:
    """``assert_gone(folder)``: every process that has left a file with its id as name in ``folder`` has ended."""

    def check(folder: Path) -> None:
        pids = [int(file.name) for file in folder.iterdir()]
        assert pids, "no rank ever started"
        ends = time.monotonic() + 20
        while any(map(_is_alive, pids)) and time.monotonic() < ends:
            time.sleep(0.05)
        assert [pid for pid in pids if _is_alive(pid)] == []

    return check
