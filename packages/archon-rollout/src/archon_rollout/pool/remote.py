"""A client in a process beside the trainer. The trainer's pool decides who is in service; this one only routes.

Its view is a moment old, so a request may reach a server that has just left. It fails there, and is repeated on another
one. A server that failed gets no requests for a moment; the trainer learns of the failure, and decides. Until it has
decided, the failed request does not return to that server, and waits if there is no other: while the trainer trains,
its view of the servers may be minutes old.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from archon_core.contracts.rollout import Completion, GenerationRequest, RolloutConfig
from archon_core.contracts.serving import ServerDriverSpec
from archon_core.contracts.spec import load_target
from archon_core.plugins import registry
from archon_core.serving.record import ServerRecord
from archon_rollout.pool.client import PoolClient
from archon_rollout.pool.idle_times import IdleTimes
from archon_rollout.pool.routing import Router
from archon_rollout.stop_texts import cut_at_stop_text, without_stop_texts

REST_SECONDS = 2.0
"""Time in which a server that failed a request gets no other."""


class _Request:
    """What its servers have done for one request of a workflow."""

    def __init__(self) -> None:
        self.has_failed = False
        self._n_calls, self._since, self._worked = 0, 0.0, 0.0

    def begin(self, now: float) -> None:
        """A server got the request, or a part of it."""
        if not self._n_calls:
            self._since = now
        self._n_calls += 1

    def end(self, now: float, *, failed: bool) -> None:
        """The server has answered, or failed."""
        self._n_calls -= 1
        if not self._n_calls:
            self._worked += now - self._since
        self.has_failed = self.has_failed or failed

    def seconds(self, now: float) -> float:
        """Time in which a server worked on the request."""
        return self._worked + (now - self._since if self._n_calls else 0.0)


_REQUEST: ContextVar[_Request | None] = ContextVar("archon_request", default=None)
"""The request on whose behalf the current task acquires servers."""


class PushedServers:
    """The servers in service, as the trainer last named them; what ``PoolClient`` needs of a pool.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._router = Router()
        self._idle = IdleTimes(clock)
        self._servers: dict[str, ServerRecord] = {}
        self._answering: frozenset[str] = frozenset()
        # Incarnation -> time and number of its last failure, until the trainer has decided about it.
        self._failed: dict[str, tuple[float, int]] = {}
        self._failures: dict[str, str] = {}
        self._n_failures = self._n_reported = 0
        self.version = 0
        self.is_switching = False

    def update(self, servers: Sequence[ServerRecord], version: int, answering: Sequence[str] = ()) -> None:
        """See ``RemoteClient``."""
        self.is_switching = False
        self._servers = {server.incarnation: server for server in servers}
        self._answering = frozenset((*self._servers, *answering))
        # The trainer named these servers after it had heard of the reported failures.
        self._failed = {
            name: (at, number)
            for name, (at, number) in self._failed.items()
            if name in self._servers and number > self._n_reported
        }
        self._observe()
        self.version = version

    def departure(self, incarnation: str) -> str:
        """See ``Pool.departure``."""
        return "" if incarnation in self._answering else "the trainer took it out of service"

    def failures(self) -> dict[str, str]:
        """See ``RemoteClient``."""
        failures, self._failures = self._failures, {}
        self._n_reported = self._n_failures
        return failures

    @contextmanager
    def one_request(self) -> Iterator[None]:
        """Within the block, acquire servers for one request.

        After a failure, it gets no server with a failure about which the trainer has not decided. ``clock`` counts the
        time in which a server works on it: the trainer limits the time without one.
        """
        token = _REQUEST.set(_Request())
        try:
            yield
        finally:
            _REQUEST.reset(token)

    def clock(self) -> float:
        """Seconds, never going back; within ``one_request``, those of the request."""
        request, now = _REQUEST.get(), self._clock()
        return now if request is None else request.seconds(now)

    def acquire(self, *, tokens: int, group: str = "") -> ServerRecord | None:
        """See ``Pool.acquire``."""
        request = _REQUEST.get()
        avoids_failed = request is not None and request.has_failed
        rested = [name for name in self._servers if not self._rests(name, forever=avoids_failed)]
        if not rested:
            return None
        chosen = self._servers[self._router.choose(rested, tokens=tokens, group=group)]
        self._observe()
        if request is not None:
            request.begin(self._clock())
        return chosen

    def release(self, server: ServerRecord, *, tokens: int, error: str = "") -> None:
        """See ``Pool.release``."""
        self._router.finish(server.incarnation, tokens=tokens)
        self._observe()
        if (request := _REQUEST.get()) is not None:
            request.end(self._clock(), failed=bool(error))
        if error and not self.departure(server.incarnation):  # the trainer knows about a server that left
            self._n_failures += 1
            self._failed[server.incarnation] = self._clock(), self._n_failures
            self._failures[server.incarnation] = error

    def _rests(self, name: str, *, forever: bool) -> bool:
        if name not in self._failed:
            return False
        at, _ = self._failed[name]
        return forever or self._clock() < at + REST_SECONDS

    def idle_share(self) -> float:
        """See ``RemoteClient``."""
        self._observe()
        return self._idle.share()

    def _observe(self) -> None:
        self._idle.observe(self._servers, lambda name: self._router.load(name) > 0)


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
        self._client = PoolClient(self._servers, driver, config, clock=self._servers.clock)

    @property
    def version(self) -> int:
        """See ``RolloutClient``."""
        return self._servers.version

    async def generate(self, request: GenerationRequest, *, group: str = "") -> list[Completion]:
        """See ``RolloutClient``. Time without a server does not count.

        Servers have no tokenizer, so they generate past stop texts; completions are cut here.
        """
        sent = without_stop_texts(request)
        with self._servers.one_request():
            completions = await self._client.generate(sent, group=group)
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
