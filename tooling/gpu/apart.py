"""Runs a group of checks in a separate process: parent and child side.

A check that crashes, hangs or leaves the device unusable costs its process. Another process then runs the checks after
it.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from pathlib import Path

from bench.limited import Ending, run_limited
from gpu.groups import GROUPS, Group
from gpu.journal import close_running, known_checks, read_journal, run_checks, unfinished_checks
from gpu.records import Context, Record, Status

DEVICE_LOST = 3
"""Exit status of a process whose device answers no more, as after an illegal memory access."""

LEAST_SECONDS = 5.0
"""Time that another process must have left to be worth its start."""


def run_apart(
    group: Group, context: Context, only: tuple[str, ...], left: float, *, check_limit: int = 0
) -> list[Record]:
    """The records of a group.

    Args:
        group: the group.
        context: as for every check.
        only: patterns of the wanted checks.
        left: seconds for the group.
        check_limit: seconds for a single check; 0 for no limit.
    """
    if left < 1:
        return [Record(group.name, "timeout", message="not begun: --time-limit is used up")]
    journal, end = context.work / f"{group.name}.jsonl", time.monotonic() + left
    call = (
        "from gpu.apart import run_here; "
        f"run_here({group.name!r}, {context.device!r}, {str(context.work)!r}, {only!r}, {check_limit!r})"
    )
    number = 0
    while True:
        output, before = context.work / f"{group.name}.{number}.log", known_checks(journal)
        # -P: the folder of this call must not come first on the path.
        ending = run_limited([sys.executable, "-P", "-c", call], output, end - time.monotonic())
        if ending.status != "error":
            break
        status, reason = _cause(ending, check_limit)
        is_explained = close_running(journal, status, reason) or ending.code == DEVICE_LOST
        if is_explained and not unfinished_checks(journal):
            ending = Ending(None, ending.code)
            break
        if known_checks(journal) == before or end - time.monotonic() < LEAST_SECONDS:
            break
        number += 1
    return read_journal(group.name, journal, end=ending.status, reason=ending.reason)


def _cause(ending: Ending, check_limit: int) -> tuple[Status, str]:
    """Why a process ended, for the check that it was running."""
    if ending.code != -signal.SIGALRM:
        return "error", ending.reason
    return "timeout", f"stopped after {check_limit} s\n{ending.reason.partition(chr(10))[2]}"


def run_here(name: str, device: str, work: str, only: tuple[str, ...], check_limit: int) -> None:
    """In the group's own process: run its checks and end."""
    import torch

    faulthandler.register(signal.SIGTERM, all_threads=False)
    # Ends the process after writing the stack, also where Python waits for a kernel.
    faulthandler.register(signal.SIGALRM, all_threads=False, chain=True)
    # No TF32 in products of fp32, whatever this machine's environment says.
    torch.set_float32_matmul_precision("highest")
    group, context = next(group for group in GROUPS if group.name == name), Context(device, Path(work))

    def answers() -> bool:
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    if context.on_gpu:
        # Loads the driver and creates the context, which does not count as time of the first check.
        torch.cuda.synchronize()
    is_usable = run_checks(
        group.name,
        list(group.checks(context)),
        context.work / f"{group.name}.jsonl",
        only,
        check_limit=check_limit,
        is_usable=answers if context.on_gpu else lambda: True,
    )
    sys.stdout.flush()
    # Threads of torch and NCCL may hold up an orderly end; everything that counts is on disk.
    os._exit(0 if is_usable else DEVICE_LOST)
