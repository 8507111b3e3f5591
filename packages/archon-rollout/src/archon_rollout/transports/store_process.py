"""The key-value store in which members of elastic groups find each other, in a process apart from the trainer's ranks.

A store lives in the process that created it. In a rank, it would end with the rank while servers still wait in it; in a
process apart, groups come and go around it. It ends when the trainer that started it ends, however that happens, and
not by a signal for the trainer: a trainer that is asked to stop first finishes its step, with a publication.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from typing import Protocol

from archon_core.errors import ServerError

START_SECONDS = 60.0

CLOSING_SECONDS = 1.0
"""Time in which members that wait in the store notice that it closes."""

PARENT_CHECK_SECONDS = 0.5

COMMAND = ("-P", "-m", __name__)
"""-P: a ``torch.py`` in the working folder is not imported."""


class Store(Protocol):
    """A key-value store on this host."""

    def start(self) -> None:
        """Start it, or replace one that ended."""

    @property
    def port(self) -> int:
        """Where it listens."""

    def close(self) -> None:
        """End it. Idempotent."""


class StoreProcess:
    """A store in a process of this trainer; implements ``Store``."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._port = 0

    def start(self) -> None:
        """Start the process, or replace one that ended. Does not wait for it: importing torch takes seconds."""
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = subprocess.Popen(
                [sys.executable, *COMMAND],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                process_group=0,  # Ctrl-C is for the trainer
            )

    @property
    def port(self) -> int:
        """The port of the store on this host; starts the process if necessary.

        Raises:
            ServerError: the process does not start, or does not listen within ``START_SECONDS``.
        """
        self.start()
        assert self._process is not None
        if not self._port:
            assert self._process.stdout is not None
            if not select.select([self._process.stdout], [], [], START_SECONDS)[0]:
                self.close()
                raise ServerError(
                    "weight transport distributed: the process of its store did not listen within "
                    f"{START_SECONDS:g} s; check the load of this host"
                )
            line = self._process.stdout.readline().strip()
            if not line.isdigit():
                self.close()
                raise ServerError(
                    "weight transport distributed: the process of its store ended before it listened "
                    f"(found {line!r}); its messages are above"
                )
            self._port = int(line)
        return self._port

    def close(self) -> None:
        """End the process, which takes ``CLOSING_SECONDS`` more if members may wait in it. Idempotent."""
        process, was_used = self._process, self._port != 0
        if process is None:
            return
        self._process, self._port = None, 0
        if not was_used:
            process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        threading.Thread(target=process.wait, name="store-end", daemon=True).start()


def main() -> None:
    """Serve until standard input ends, or the process that started this one."""
    parent = os.getppid()
    for number in (signal.SIGINT, signal.SIGTERM):  # SLURM sends SIGTERM to all processes of a job
        signal.signal(number, signal.SIG_IGN)
    import torch.distributed as dist

    from archon_core.receiving.elastic_group import CLOSING

    store = dist.TCPStore(
        "127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=START_SECONDS), wait_for_workers=False
    )
    print(store.port, flush=True)
    # Another child of a killed trainer may hold the pipe open.
    while not select.select([sys.stdin], [], [], PARENT_CHECK_SECONDS)[0] and os.getppid() == parent:
        pass
    store.set(CLOSING, "")
    time.sleep(CLOSING_SECONDS)


if __name__ == "__main__":
    main()
