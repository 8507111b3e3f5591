"""A process that imports everything once and forks a fork server for each process that connects to it.

The workers of a test session and the ranks of its worlds share it by its address: ``ForkServer(address=...)``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from archon_testing.fork_server import PRELOADED, serve_owner
from archon_testing.forked_program import die_with_parent

ADDRESS = "ARCHON_FORK_SERVER"
"""Environment variable with the address of the session's server."""

_MAIN = (
    "import json, sys; arguments = json.loads(sys.argv[1]); sys.path[:] = arguments.pop('path'); "
    "from archon_testing.shared_fork_server import serve_owners; serve_owners(**arguments)"
)


class SharedForkServer:
    """Imports modules when the first owner connects; dies with the process that creates it.

    Args:
        modules: to import; missing ones are skipped.

    Attributes:
        address: for ``ForkServer``.
    """

    def __init__(self, modules: Sequence[str] = PRELOADED) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="archon-forks-")
        self.address = os.path.join(self._folder.name, "socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(self.address)
            listening.listen()
            arguments = json.dumps({"descriptor": listening.fileno(), "path": sys.path, "modules": modules})
            self._process = subprocess.Popen([sys.executable, "-c", _MAIN, arguments], pass_fds=[listening.fileno()])

    def close(self) -> None:
        """End the server, and with it the fork servers of all owners."""
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


def serve_owners(descriptor: int, modules: Sequence[str]) -> None:
    """The main function of the server.

    Args:
        descriptor: of the socket to which owners connect.
        modules: to import before the first owner is served.
    """
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; owners handle it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the fork servers
    listening = socket.socket(fileno=descriptor)
    waiting = list(modules)
    while True:
        channel, _ = listening.accept()
        while waiting:
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(waiting.pop(0))
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            owner = json.loads(channel.recv(1 << 10))
            serve_owner(channel, owner["owner"], nested=owner["nested"])
        channel.close()
