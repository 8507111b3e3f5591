"""Runs a group of checks in a separate process: parent and child side."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from pathlib import Path

from bench.limited import run_limited
from gpu.groups import GROUPS, Group
from gpu.journal import read_journal, run_checks
from gpu.records import Context, Record


def run_apart(group: Group, context: Context, only: tuple[str, ...], left: float) -> list[Record]:
    """The records of a group, which gets its own time limit on a GPU, and never more than ``left`` seconds."""
    if left < 1:
        return [Record(group.name, "timeout", message="not begun: --time-limit is used up")]
    journal, output = context.work / f"{group.name}.jsonl", context.work / f"{group.name}.log"
    limit = min(left, group.limit) if context.on_gpu else left
    call = (
        f"from gpu.apart import run_here; run_here({group.name!r}, {context.device!r}, {str(context.work)!r}, {only!r})"
    )
    # -P: the folder of this call must not come first on the path.
    ending = run_limited([sys.executable, "-P", "-c", call], output, limit)
    return read_journal(group.name, journal, end=ending.status, reason=ending.reason)


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
