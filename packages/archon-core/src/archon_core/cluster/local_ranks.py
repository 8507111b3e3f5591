"""Starts the ranks of ``archon doctor --cluster`` on this machine. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

LOCALHOST = "127.0.0.1"

GRACE_SECONDS = 5.0
"""Time for the other ranks to end after one has failed, before they are killed."""

POLL_SECONDS = 0.05


def run_local_ranks(arguments: Sequence[str], n_ranks: int) -> int:
    """Run ``archon ARGUMENTS`` as all ranks on this machine; returns the exit code of the first that failed, or 0.

    Rank 0 writes to standard output; errors of all ranks appear on standard error.
    """
    with socket.socket() as free:
        free.bind((LOCALHOST, 0))
        port = free.getsockname()[1]
    isolated = () if sys.path[0] in ("", os.getcwd()) else ("-P",)
    command = [sys.executable, *isolated, "-m", "archon_core.cli", *arguments]
    running: dict[int, subprocess.Popen[bytes]] = {}
    first_failure, deadline = 0, float("inf")
    try:
        for rank in range(n_ranks):
            environment = {**os.environ, **_place(rank, n_ranks, port)}
            output = None if rank == 0 else subprocess.DEVNULL
            running[rank] = subprocess.Popen(command, env=environment, stdout=output)
        while running and time.monotonic() < deadline:
            for rank in [rank for rank, process in running.items() if process.poll() is not None]:
                code = running.pop(rank).returncode
                if code and not first_failure:
                    first_failure, deadline = abs(code), time.monotonic() + GRACE_SECONDS
            time.sleep(POLL_SECONDS)
    finally:
        for process in running.values():
            process.kill()
        for process in running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
    return first_failure


def _place(rank: int, n_ranks: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(n_ranks),
        "LOCAL_WORLD_SIZE": str(n_ranks),
        "MASTER_ADDR": LOCALHOST,
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
