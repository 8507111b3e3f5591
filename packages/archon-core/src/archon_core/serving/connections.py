"""Connections to servers that an event loop keeps open between requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

IDLE_SECONDS = 4.0
"""After so long an idle connection is not used again: uvicorn, on which vLLM and SGLang run too, closes it after 5."""

MAX_IDLE = 64
"""Idle connections to keep per server."""


@dataclass
class Connection:
    """A connection to a server.

    Attributes:
        reader: reads answers.
        writer: writes requests.
        is_reusable: whether the server has answered the last request completely and will take another one.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    is_reusable: bool = False
    _idle_since: float = field(default=0.0, repr=False)

    def is_open(self, now: float) -> bool:
        """Whether the server has not closed the idle connection, and will not do so at once."""
        is_closed = self.writer.is_closing() or self.reader.at_eof()
        return not is_closed and now - self._idle_since < IDLE_SECONDS


_Idle = dict[tuple[str, int], list[Connection]]

_LOOPS: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[_Idle, AsyncGenerator[_Idle, None]]] = WeakKeyDictionary()


@asynccontextmanager
async def connection(host: str, port: int) -> AsyncIterator[Connection]:
    """A connection for one request: an idle one of this event loop, or a new one.

    It is kept if the caller sets ``is_reusable``, else closed, also when the caller is cancelled.

    Raises:
        OSError: the server accepts no connection.
    """
    idle = (await _idle_of_loop()).setdefault((host, port), [])
    loop = asyncio.get_running_loop()
    used = None
    while idle and used is None:
        used = idle.pop()
        if not used.is_open(loop.time()):
            used.writer.close()
            used = None
    used = used or Connection(*await asyncio.open_connection(host, port))
    used.is_reusable = False
    try:
        yield used
    finally:
        if used.is_reusable and len(idle) < MAX_IDLE:
            used._idle_since = loop.time()
            idle.append(used)
        else:
            used.writer.close()


async def _idle_of_loop() -> _Idle:
    """The idle connections of the running event loop."""
    loop = asyncio.get_running_loop()
    if loop not in _LOOPS:
        keeping = _keep()
        _LOOPS[loop] = (await anext(keeping), keeping)
    return _LOOPS[loop][0]


async def _keep() -> AsyncGenerator[_Idle, None]:
    """Yields the connections, and closes them at the end of the loop: ``asyncio.run`` closes its generators then."""
    idle: _Idle = {}
    try:
        yield idle
    finally:
        for connections in idle.values():
            for one in connections:
                one.writer.close()
