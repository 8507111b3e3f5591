"""Messages between the trainer and a reward process: byte strings with their length, over a socket.

The trainer sends pickles, one per call, since a record may hold any type that a data set has. A process answers in
JSON.

Answers are sent together, at most ``HELD_SECONDS`` after the first: a message for each would take longer than a cheap
reward. Before it unpickles a call, a process writes the number of calls begun into a file, so that the trainer knows
which one hangs or ended the process, even if answers to earlier ones were not sent.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Iterator

HELD_SECONDS = 0.002

TRAINERS_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Signals that a cluster may send to all processes of a job. They are the trainer's, which finishes its step; processes
that it starts have them blocked at first, and unblock them with handlers that do nothing."""

_LENGTH = struct.Struct("!Q")
_CHUNK = 1 << 16


def send(channel: socket.socket, message: bytes) -> None:
    """Send one message; raises OSError if the other side is gone, or does not read within the socket's timeout."""
    channel.sendall(_LENGTH.pack(len(message)) + message)


class CallCounter:
    """The number of calls that a process has begun, in a file that trainer and process have open.

    Args:
        file: its descriptor.
    """

    def __init__(self, file: int) -> None:
        self._file = file

    def write(self, number: int) -> None:
        """Set the number."""
        os.pwrite(self._file, _LENGTH.pack(number), 0)

    def read(self) -> int:
        """The number; 0 in an empty file."""
        found = os.pread(self._file, _LENGTH.size, 0)
        return _LENGTH.unpack(found)[0] if found else 0


class Receiver:
    """Reads messages from a socket."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._buffer = bytearray()

    def arrived(self) -> tuple[list[bytes], bool]:
        """The messages that have come, and whether more can come. The socket must not block."""
        is_open = True
        while True:
            try:
                received = self._channel.recv(_CHUNK)
            except BlockingIOError:
                break
            except ConnectionError:
                received = b""
            if not received:
                is_open = False
                break
            self._buffer += received
        return list(self._messages()), is_open

    def wait(self) -> bytes | None:
        """Wait for one message; ``None`` when the other side is gone."""
        while True:
            message = next(self._messages(), None)
            if message is not None:
                return message
            try:
                received = self._channel.recv(_CHUNK)
            except ConnectionError:
                return None
            if not received:
                return None
            self._buffer += received

    def _messages(self) -> Iterator[bytes]:
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            message = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield message
