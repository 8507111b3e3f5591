"""Messages between trainer and collector: msgpack with a length, over a socket.

The trainer calls ``{"call": name, ...}``, one call at a time, and the collector answers ``{"ok": value}`` or
``{"error": [class, text]}``. Nothing is pickled: what the collector receives can only be data.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import msgpack

from archon_core import errors
from archon_core.errors import ArchonError, TrainingError

_LENGTH = struct.Struct("!Q")


def packed(message: Any) -> bytes:
    """A message with its length."""
    content = msgpack.packb(message)
    return _LENGTH.pack(len(content)) + content


def unpacked(content: bytes) -> Any:
    """The message of ``packed`` without its length; maps may have numbers as keys."""
    return msgpack.unpackb(content, strict_map_key=False)


def receive(channel: socket.socket) -> Any:
    """Wait for one message.

    Raises:
        EOFError: the other side is gone.
        TimeoutError: it is not complete within the socket's time limit.
    """
    return unpacked(_read(channel, _LENGTH.unpack(_read(channel, _LENGTH.size))[0]))


async def receive_async(reader: asyncio.StreamReader) -> Any:
    """Wait for one message; raises EOFError if the other side is gone."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return unpacked(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise EOFError("the trainer is gone") from error


def error_data(error: Exception) -> dict[str, Any]:
    """An answer that reports an error."""
    return {"error": [type(error).__name__, str(error)]}


def value_of(answer: dict[str, Any]) -> Any:
    """The value of an answer; raises the error that it reports, of Archon's class of that name if there is one."""
    if "error" not in answer:
        return answer["ok"]
    name, text = answer["error"]
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, ArchonError):
        raise kind(text)
    raise TrainingError(f"the collector failed ({name}: {text}); its log says where")


def _read(channel: socket.socket, length: int) -> bytes:
    content = bytearray()
    while len(content) < length:
        part = channel.recv(min(length - len(content), 1 << 20))
        if not part:
            raise EOFError("the collector is gone")
        content += part
    return bytes(content)
