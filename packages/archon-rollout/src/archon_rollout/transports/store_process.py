"""The key-value store in which members of elastic groups find each other, in a process apart from the trainer's ranks.

A store lives in the process that created it. In a rank, it would end with the rank while servers still wait in it; in a
process apart, groups come and go around it. It ends when the trainer that started it ends, however that happens.
"""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from typing import Protocol

from archon_core.errors import ServerError

START_SECONDS = 60.0


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
                [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )

    @property
    def port(self) -> int:
        """The port of the store on this host; starts the process if necessary.

        Raises:
            ServerError: the process does not start.
        """
        self.start()
        assert self._process is not None
        if not self._port:
            assert self._process.stdout is not None
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
        """End the process. Idempotent."""
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process.kill()
            self._process.wait()
            self._process, self._port = None, 0


def main() -> None:
    """Serve until standard input ends."""
    import torch.distributed as dist

    store = dist.TCPStore(
        "127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=START_SECONDS), wait_for_workers=False
    )
    print(store.port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
