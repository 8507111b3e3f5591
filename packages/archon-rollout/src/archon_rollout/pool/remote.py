"""A client in a process beside the trainer. The trainer's pool decides who is in service; this one only routes.

Its view is a moment old, so a request may reach a server that has just left. It fails there, and is repeated on another
one. A server that failed gets no requests for a moment; the trainer learns of the failure, and decides. Until it has
decided, a failed request is not lost: while the trainer trains, its view of the servers may be minutes old.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from archon_core.contracts.rollout import Completion, GenerationRequest, RolloutConfig
from archon_core.contracts.serving import ServerDriverSpec
from archon_core.contracts.spec import load_target
from archon_core.errors import RefusedRequestError, ServerError
from archon_core.plugins import registry
from archon_core.serving.descriptors import connection_limit
from archon_core.serving.record import ServerRecord
from archon_rollout.pool.client import PoolClient
from archon_rollout.pool.idle_times import IdleTimes
from archon_rollout.pool.routing import Router
from archon_rollout.pool.stopping import POLL_SECONDS
from archon_rollout.stop_texts import cut_at_stop_text, without_stop_texts

REST_SECONDS = 2.0
"""Time in which a server that failed a request gets no other."""


class PushedServers:
    """The servers in service, as the trainer last named them; what ``PoolClient`` needs of a pool.

    Args:
        clock: seconds, never going back.
        max_sequences: see ``ServerCapabilities``.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, max_sequences: int | None = None) -> None:
        self._clock = clock
        self._router = Router(max_sequences)
        self._idle = IdleTimes(clock)
        self._servers: dict[str, ServerRecord] = {}
        self._answering: frozenset[str] = frozenset()
        self._failed_at: dict[str, float] = {}
        self._failures: dict[str, str] = {}
        self._reported: set[str] = set()
        self._n_failures = self._n_reported = self._n_decided = 0
        self._empty_at = float("-inf")
        self.version = 0
        self.is_switching = False

    def update(self, servers: Sequence[ServerRecord], version: int, answering: Sequence[str] = ()) -> None:
        """See ``RemoteClient``."""
        self.is_switching = False
        self._note_emptiness()
        self._servers = {server.incarnation: server for server in servers}
        self._answering = frozenset((*self._servers, *answering))
        self._note_emptiness()
        # The trainer named these servers after it had heard of the reported failures.
        self._failed_at = {
            name: at for name, at in self._failed_at.items() if name in self._servers and name not in self._reported
        }
        self._reported.clear()
        self._n_decided = self._n_reported
        self._observe()
        self.version = version

    def departure(self, incarnation: str) -> str:
        """See ``Pool.departure``."""
        return "" if incarnation in self._answering else "the trainer took it out of service"

    def failures(self) -> dict[str, str]:
        """See ``RemoteClient``."""
        failures, self._failures = self._failures, {}
        self._reported |= failures.keys()
        self._n_reported = self._n_failures
        return failures

    def acquire(self, *, tokens: int, group: str = "", sequences: int = 1) -> ServerRecord | None:
        """See ``Pool.acquire``."""
        now = self._clock()
        rested = [n for n in self._servers if now >= self._failed_at.get(n, float("-inf")) + REST_SECONDS]
        chosen = self._router.choose(rested, tokens=tokens, group=group, sequences=sequences)
        if chosen is None:
            return None
        self._observe()
        return self._servers[chosen]

    def release(self, server: ServerRecord, *, tokens: int, error: str = "", sequences: int = 1) -> None:
        """See ``Pool.release``."""
        self._router.finish(server.incarnation, tokens=tokens, sequences=sequences)
        self._observe()
        if error and not self.departure(server.incarnation):  # the trainer knows about a server that left
            self._failed_at[server.incarnation] = self._clock()
            self._failures[server.incarnation] = error
            self._n_failures += 1

    @property
    def n_failures(self) -> int:
        """Number of failures so far."""
        return self._n_failures

    def has_decided(self, n_failures: int) -> bool:
        """Whether the trainer has named servers since it heard of the first ``n_failures`` failures."""
        return bool(self._servers) and self._n_decided >= n_failures

    def was_empty_since(self, moment: float) -> bool:
        """Whether no server was in service for some time after ``moment``."""
        return not self._servers or self._empty_at > moment

    def idle_share(self) -> float:
        """See ``RemoteClient``."""
        self._observe()
        return self._idle.share()

    def _observe(self) -> None:
        self._idle.observe(self._servers, lambda name: self._router.load(name) > 0)

    def _note_emptiness(self) -> None:
        if not self._servers:
            self._empty_at = self._clock()


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
        self._config = config
        self._servers = PushedServers(max_sequences=driver.capabilities.max_sequences)
        self._client = PoolClient(self._servers, driver, config, max_connections=connection_limit())

    @property
    def version(self) -> int:
        """See ``RolloutClient``."""
        return self._servers.version

    async def generate(self, request: GenerationRequest, *, group: str = "") -> list[Completion]:
        """See ``RolloutClient``. Time without a server in service does not count: the trainer limits it.

        Servers have no tokenizer, so they generate past stop texts; completions are cut here.
        """
        sent = without_stop_texts(request)
        completions = await generate_patiently(self._client, self._servers, self._config, sent, group)
        return [cut_at_stop_text(completion, request) for completion in completions]

    def update(self, servers: Sequence[ServerRecord], version: int, answering: Sequence[str] = ()) -> None:
        """See ``RemoteClient``."""
        self._servers.update(servers, version, answering)

    def switching(self) -> None:
        """See ``RemoteClient``."""
        self._servers.is_switching = True

    def failures(self) -> dict[str, str]:
        """See ``RemoteClient``."""
        return self._servers.failures()

    def idle_share(self) -> float:
        """See ``RemoteClient``."""
        return self._servers.idle_share()


async def generate_patiently(
    client: PoolClient,
    servers: PushedServers,
    config: RolloutConfig,
    request: GenerationRequest,
    group: str,
    clock: Callable[[], float] = time.monotonic,
) -> list[Completion]:
    """Completions by ``client``. After a failure, repeats the request once the trainer has decided about the servers.

    Raises:
        ServerError: the servers in service could not complete the request, in ``request_retries`` repetitions either.
    """
    for attempt in range(config.request_retries + 1):
        start = clock()
        try:
            return await client.generate(request, group=group)
        except RefusedRequestError:
            raise
        except ServerError:
            in_time = clock() < start + config.request_timeout
            if attempt == config.request_retries or not (in_time or servers.was_empty_since(start)):
                raise
        n_failures = servers.n_failures
        while not servers.has_decided(n_failures):
            await asyncio.sleep(POLL_SECONDS)
    raise AssertionError("the last attempt returns or raises")
