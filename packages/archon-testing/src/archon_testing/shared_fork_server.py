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

from archon_testing.fork_server import ERRORS, PRELOADED, serve_owner
from archon_testing.forked_program import die_with_parent

ADDRESS = "ARCHON_FORK_SERVER"
"""Environment variable with the address of the session's server."""

ADDRESS_BYTES = 107
"""Longest path of a socket that Linux takes: ``sun_path`` of unix(7), without the NUL at its end."""

_MAIN = (
    "import json, sys; arguments = json.loads(sys.argv[1]); sys.path[:] = arguments.pop('path'); "
    "from archon_testing.shared_fork_server import serve_owners; serve_owners(**arguments)"
)


class SharedForkServer:
    """Imports modules when the first owner connects; dies with the process that creates it.

    Args:
        modules: to import; missing ones are skipped. The server ends after any other error, with a traceback on stderr,
            which goes to a file beside the socket.

    Attributes:
        address: for ``ForkServer``.
    """

    def __init__(self, modules: Sequence[str] = PRELOADED) -> None:
        self._folder, self.address = _make_socket_folder()
        errors = open(os.path.join(self._folder.name, ERRORS), "wb")  # noqa: SIM115
        with errors, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(self.address)
            listening.listen()
            arguments = json.dumps({"descriptor": listening.fileno(), "path": sys.path, "modules": modules})
            self._process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, arguments], pass_fds=[listening.fileno()], stderr=errors
            )

    def close(self) -> None:
        """End the server, and with it the fork servers of all owners."""
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


def _make_socket_folder() -> tuple[tempfile.TemporaryDirectory[str], str]:
    """Make a private folder, in /tmp if a socket's path in TMPDIR would be too long; returns it and the socket's path.

    An abstract socket would need no path, but accepts connections of all users of the machine.
    """
    folder = tempfile.TemporaryDirectory(prefix="archon-forks-")
    if len(os.fsencode(os.path.join(folder.name, "socket"))) > ADDRESS_BYTES:
        folder.cleanup()
        folder = tempfile.TemporaryDirectory(prefix="archon-forks-", dir="/tmp")
    return folder, os.path.join(folder.name, "socket")


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
