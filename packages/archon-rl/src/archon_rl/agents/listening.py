"""``AgentServer``: an application served inside a running event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from archon_core.serving.listener import bind

WILDCARDS = ("0.0.0.0", "::", "")


class AgentServer:
    """Listens for agents. Belongs to the event loop that starts it, and ends with it.

    Args:
        app: the application.
        host: address to listen on.
        port: 0 for any free one.

    Raises:
        ConfigError: the address cannot be bound.
    """

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        self._listener = bind(host, port, options=f"rollout.agent.host={host}, rollout.agent.port={port}")
        self._host = host
        self._server = _Quiet(
            uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_keep_alive=120)
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Accept requests."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listener]), name="agent-server")
        while not self._server.started:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.001)

    async def stop(self) -> None:
        """Stop, without waiting for connections."""
        self._server.should_exit = self._server.force_exit = True
        if self._task is not None:
            await self._task

    @property
    def url(self) -> str:
        """For agents on this machine."""
        return self._url("127.0.0.1" if self._host in WILDCARDS else self._host)

    @property
    def advertised_url(self) -> str:
        """For agents on other machines, if the host is not a loopback address."""
        return self._url(socket.gethostname() if self._host in WILDCARDS else self._host)

    def _url(self, host: str) -> str:
        port = self._listener.getsockname()[1]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Quiet(uvicorn.Server):
    """Leaves signals to the process that it runs in."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
