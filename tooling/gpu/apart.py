"""Runs a group of checks in a separate process: parent and child side."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from gpu.groups import GROUPS, Group
from gpu.journal import read_journal, run_checks
from gpu.records import Context, Record, Status

LAST_LINES = 15
"""Number of lines of a failed process's output to show."""

GRACE = 1.0
"""Seconds for a process to write its stacks before it is killed."""


def run_apart(group: Group, context: Context, only: tuple[str, ...], left: float) -> list[Record]:
    """The records of a group, which gets its own time limit on a GPU, and never more than ``left`` seconds."""
    if left < 1:
        return [Record(group.name, "timeout", message="not begun: --time-limit is used up")]
    journal, output = context.work / f"{group.name}.jsonl", context.work / f"{group.name}.log"
    limit = min(left, group.limit) if context.on_gpu else left
    call = (
        f"from gpu.apart import run_here; run_here({group.name!r}, {context.device!r}, {str(context.work)!r}, {only!r})"
    )
    end: Status | None = None
    reason = ""
    with output.open("w", encoding="utf-8") as log:
        # A new session, so that its children end with it.
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", call], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
            if code:
                end, reason = "error", f"its process ended with exit code {code}\n{_tail(output)}"
        except subprocess.TimeoutExpired:
            process.terminate()
            time.sleep(GRACE)
            end, reason = "timeout", f"stopped after {limit:.0f} s\n{_tail(output)}"
        finally:
            _end_session(process)
    return read_journal(group.name, journal, end=end, reason=reason)


def run_here(name: str, device: str, work: str, only: tuple[str, ...]) -> None:
    """In the group's own process: run its checks and end."""
    import torch

    faulthandler.register(signal.SIGTERM, all_threads=False)
    # No TF32 in products of fp32, whatever this machine's environment says.
    torch.set_float32_matmul_precision("highest")
    group, context = next(group for group in GROUPS if group.name == name), Context(device, Path(work))
    run_checks(group.name, list(group.checks(context)), context.work / f"{group.name}.jsonl", only)
    sys.stdout.flush()
    # Threads of torch and NCCL may hold up an orderly end; everything that counts is on disk.
    os._exit(0)


def _tail(output: Path) -> str:
    return "\n".join(output.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:])


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the processes that were started together."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()
