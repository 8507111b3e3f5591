"""Processes that die with the storm, and a look at what one has left behind."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from archon_core.serving.arena_file import FOLDER as SHARED_MEMORY

STACK_SIGNAL = signal.SIGUSR1
"""On this signal, a process writes the stacks of its threads to its output."""

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def fork(run: Callable[[], None], output: Path) -> int:
    """Run a function in a child that dies with this process; returns its pid.

    The caller has one thread: a child would inherit the locks of others without their owners.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        die_with_parent()
        with output.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout.reconfigure(line_buffering=True)
        faulthandler.register(STACK_SIGNAL, file=sys.__stderr__, all_threads=True)
        run()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def adopt_orphans() -> None:
    """Become the parent of processes whose parents end, so that ``children`` sees them."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def children_after(seconds: float) -> list[str]:
    """The children that have not ended after so many seconds; returns as soon as there are none."""
    deadline = time.monotonic() + seconds
    while (found := children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def children() -> list[str]:
    """Pid and command line of each child that is still there, zombies aside."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            state, parent = (path / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                command = (path / "cmdline").read_bytes()[:200].replace(b"\0", b" ")
                found.append(f"{path.name}: {command.decode(errors='replace')}")
    return found


def segments() -> set[str]:
    """Names of all segments in shared memory that are ours."""
    return {path.name for path in SHARED_MEMORY.glob("archon-*")} if SHARED_MEMORY.is_dir() else set()


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl {option}")
