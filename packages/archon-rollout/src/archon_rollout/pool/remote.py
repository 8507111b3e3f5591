"""A client in a process beside the trainer. The trainer's pool decides who is in service; this one only routes.

Its view is a moment old, so a request may reach a server that has just left. It fails there, and is repeated on another
one. A server that failed gets no requests for a moment; the trainer learns of the failure, and decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from archon_core.contracts.rollout import Completion, GenerationRequest, RolloutConfig
from archon_core.contracts.serving import ServerDriverSpec
from archon_core.contracts.spec import load_target
from archon_core.plugins import registry
from archon_core.serving.record import ServerRecord
from archon_rollout.pool.client import PoolClient
from archon_rollout.pool.routing import Router

REST_SECONDS = 2.0
"""Time in which a server that failed a request gets no other, unless all have failed."""


class PushedServers:
    """The servers in service, as the trainer last named them; what ``PoolClient`` needs of a pool.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._router = Router()
        self._servers: dict[str, ServerRecord] = {}
        self._failed_at: dict[str, float] = {}
        self._failures: dict[str, str] = {}
        self.version = 0
        self.is_switching = False

    def update(self, servers: Sequence[ServerRecord], version: int) -> None:
        """See ``RemoteClient``."""
        self.is_switching = False
        self._servers = {server.incarnation: server for server in servers}
        self._failed_at = {name: at for name, at in self._failed_at.items() if name in self._servers}
        self.version = version

    def departure(self, incarnation: str) -> str:
        """See ``Pool.departure``."""
        return "" if incarnation in self._servers else "the trainer took it out of service"

    def failures(self) -> dict[str, str]:
        """See ``RemoteClient``."""
        failures, self._failures = self._failures, {}
        return failures

    def acquire(self, *, tokens: int, group: str = "") -> ServerRecord | None:
        """See ``Pool.acquire``."""
        if not self._servers:
            return None
        now = self._clock()
        rested = [n for n in self._servers if now >= self._failed_at.get(n, float("-inf")) + REST_SECONDS]
        return self._servers[self._router.choose(rested or [*self._servers], tokens=tokens, group=group)]

    def release(self, server: ServerRecord, *, tokens: int, error: str = "") -> None:
        """See ``Pool.release``."""
        self._router.finish(server.incarnation, tokens=tokens)
        if error:
            self._failed_at[server.incarnation] = self._clock()
            self._failures[server.incarnation] = error


class PushedClient:
    """Implements ``contracts.serving.RemoteClient``.

    Args:
        data: ``driver``, the name of a ``ServerDriverSpec``; ``config``, the fields of the section ``rollout``;
            ``options``, ``None`` or target and fields of the driver's section; and ``token``.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        config = RolloutConfig(**data["config"])
        spec = registry().get(ServerDriverSpec, data["driver"])
        section = data["options"]
        options = section and load_target(section["target"], origin=spec.origin)(**section["fields"])
        driver = spec.load()(config, options=options, token=data["token"])
        self._servers = PushedServers()
        self._client = PoolClient(self._servers, driver, config)

    @property
    def version(self) -> int:
        """See ``RolloutClient``."""
        return self._servers.version

    async def generate(self, request: GenerationRequest, *, group: str = "") -> list[Completion]:
        """See ``RolloutClient``."""
        return await self._client.generate(request, group=group)

    def update(self, servers: Sequence[ServerRecord], version: int) -> None:
        """See ``RemoteClient``."""
        self._servers.update(servers, version)

    def switching(self) -> None:
        """See ``RemoteClient``."""
        self._servers.is_switching = True

    def failures(self) -> dict[str, str]:
        """See ``RemoteClient``."""
        return self._servers.failures()
