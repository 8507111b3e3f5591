"""Runs a process as one rank: it ends with its launcher, and writes an error file for it."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import NoReturn

from archon_core.errors import USER_ERROR, ArchonError
from archon_core.ranks.environment import LAUNCHER_PID, RankEnvironment
from archon_core.ranks.error_file import ERROR_FILE, describe_error, write_error

TORCHRUN_ID = "TORCHELASTIC_RUN_ID"
"""Environment variable that ``torchrun`` sets. Other launchers may end before their ranks, so they are not watched."""

PARENT_CHECK_SECONDS = 0.5


def started_by_archon(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether ``archon train`` started this rank; it then reports start and failure to the user."""
    return LAUNCHER_PID in environment


def run_as_rank(place: RankEnvironment, body: Callable[[], int]) -> NoReturn:
    """Run ``body`` as a rank and exit with its code, without the interpreter's shutdown.

    After a failure, the shutdown would wait for threads in collectives that other ranks never enter. After success, it
    would destroy torch's state under running threads, which occasionally aborts the process ("terminate called without
    an active exception", torch 2.13 with gloo).

    Args:
        place: the rank's environment.
        body: returns the exit code.
    """
    faulthandler.enable()
    if started_by_archon():
        end_with_parent(int(os.environ[LAUNCHER_PID]))
    elif TORCHRUN_ID in os.environ:
        end_with_parent(os.getppid())
    try:
        code = body()
    except Exception as error:
        code = USER_ERROR if isinstance(error, ArchonError) else 1
        _leave(error, place)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end_with_parent(parent: int) -> None:
    """End this process at once, without clean-up, when ``parent`` is no longer its parent.

    A killed launcher cannot end its ranks. A thread checks for that, because the main thread may wait in a collective.

    Args:
        parent: process id of the launcher.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="archon-watchdog", daemon=True).start()


def _leave(error: Exception, place: RankEnvironment) -> None:
    """Write the error file, and print the error unless the launcher will."""
    described = describe_error(error)
    write_error(described)
    if started_by_archon():
        if place.rank > 0:  # into the rank's log; the launcher shows the error of the first rank
            traceback.print_exception(error)
    elif described.kind != "user" or os.environ.get("ARCHON_TRACEBACK", "0") not in ("", "0"):
        traceback.print_exception(error)
    elif place.rank == 0 or not os.environ.get(ERROR_FILE):
        who = f"rank {place.rank}: " if place.rank > 0 else ""
        print(f"{who}error: {described.message}", file=sys.stderr)
