"""Messages between the trainer and a reward process: byte strings with their length, over a socket.

The trainer sends pickles, since a record may hold any type that a data set has. A process answers in JSON.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

_LENGTH = struct.Struct("!Q")
_CHUNK = 1 << 16


def send(channel: socket.socket, message: bytes) -> None:
    """Send one message; raises OSError if the other side is gone, or does not read within the socket's timeout."""
    channel.sendall(_LENGTH.pack(len(message)) + message)


class Receiver:
    """Reads messages from a socket."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._buffer = bytearray()

    def read(self) -> Iterator[bytes] | None:
        """Wait for bytes; the messages that they complete, or ``None`` when the other side is gone."""
        try:
            received = self._channel.recv(_CHUNK)
        except ConnectionError:
            return None
        if not received:
            return None
        self._buffer += received
        return self._messages()

    def wait(self) -> bytes | None:
        """Wait for one message; ``None`` when the other side is gone."""
        while True:
            message = next(self._messages(), None)
            if message is not None:
                return message
            if self.read() is None:
                return None

    def _messages(self) -> Iterator[bytes]:
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            message = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield message
