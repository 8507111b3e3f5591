"""Ends requests that nobody waits for any more, which frees their places on servers."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from archon_core.contracts.serving import ServerDriver
from archon_core.serving.record import ServerRecord

ABORT_SECONDS = 5.0
"""Time limit of a call."""

GATHER_SECONDS = 0.02
"""Time in which further requests join a call. A client that stops cancels all of its requests at once, and a server
that hangs would otherwise cost the time limit for each."""


class Aborts:
    """Ends the requests of one client; those of a server that are cancelled together with one call.

    Args:
        driver: calls the servers.
    """

    def __init__(self, driver: ServerDriver) -> None:
        self._driver = driver
        self._waiting: dict[str, list[str]] = {}

    async def end(self, server: ServerRecord, request_id: str) -> None:
        """End a request. The first one of a call waits for its end; a failure of the call is ignored."""
        waiting = self._waiting.get(server.incarnation)
        if waiting is not None:
            waiting.append(request_id)
            return
        self._waiting[server.incarnation] = [request_id]
        await asyncio.shield(self._call(server))

    async def _call(self, server: ServerRecord) -> None:
        try:
            await asyncio.sleep(GATHER_SECONDS)
        finally:
            request_ids = self._waiting.pop(server.incarnation)
        with suppress(Exception):
            await asyncio.to_thread(self._driver.abort, server, request_ids, timeout=ABORT_SECONDS)
