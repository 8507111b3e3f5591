"""Runs a server's command, and ends it with the process that started it: ``python guard.py PARENT COMMAND...``.

Foreign servers live on when the process that started them is killed, and hold its devices. The guard leads the server's
process group and needs nothing but the standard library, because it runs as a file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from archon_core.serving.record import ServerLaunch

CHECK_SECONDS = 0.5
END_SECONDS = 8.0
"""Time for the server to end after SIGTERM. Its starter gives the guard a little longer before it kills both."""

CANNOT_START = 127


def guarded(launch: ServerLaunch) -> list[str]:
    """The command of a server, under a guard unless the server ends with this process by itself."""
    return [*(() if launch.ends_with_parent else (sys.executable, "-I", __file__, str(os.getpid()))), *launch.command]


def run(parent: int, command: Sequence[str]) -> int:
    """Run ``command`` until it ends, ``parent`` dies or SIGTERM arrives. Returns its exit code, or minus the signal
    that ended it."""
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: ending.set())
    try:
        server = subprocess.Popen(command)
    except OSError as error:
        print(f"cannot start the server: {error}; check the path of its interpreter", file=sys.stderr, flush=True)
        return CANNOT_START
    while server.poll() is None and not ending.wait(CHECK_SECONDS) and os.getppid() == parent:
        pass
    if server.poll() is None:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(END_SECONDS)
        os.killpg(0, signal.SIGKILL)  # the server's own processes too; ends this one
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)  # processes that a crashed server has left
    return server.returncode


def main(arguments: Sequence[str]) -> None:
    """Run the guard, and end in the way in which the server ended."""
    code = run(int(arguments[0]), arguments[1:])
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
