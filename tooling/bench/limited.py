"""Runs a command under a time limit; nothing that it started is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LAST_LINES = 15
"""Number of lines of a failed process's output to show."""

GRACE = 1.0
"""Seconds for a process to write its stacks before it is killed."""

KILL_SECONDS = 10.0
"""Seconds for a killed process to end."""


@dataclass(frozen=True)
class Ending:
    """How a command ended.

    Attributes:
        status: ``None`` in order; an exit status other than 0 is an ``error``.
        code: exit status; ``None`` after a time limit.
        reason: the same in words, with the last lines of its output.
    """

    status: Literal["error", "timeout"] | None
    code: int | None
    reason: str = ""


def run_limited(
    command: Sequence[str],
    output: Path,
    limit: float,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ending:
    """Run ``command``, its output in a file, for at most ``limit`` seconds."""
    with output.open("w", encoding="utf-8") as log:
        # A new session, so that its children end with it.
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=folder, env=environment
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.terminate()
            time.sleep(GRACE)
            return Ending("timeout", None, f"stopped after {limit:.0f} s\n{last_lines(output)}")
        finally:
            _end_session(process)
    if code:
        return Ending("error", code, f"its process ended with exit code {code}\n{last_lines(output)}")
    return Ending(None, code)


def last_lines(output: Path) -> str:
    """The end of a process's output."""
    return "\n".join(output.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:])


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the processes that were started together."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    # A process inside a driver's call ends only after it, which may be never.
    with suppress(subprocess.TimeoutExpired):
        process.wait(KILL_SECONDS)
