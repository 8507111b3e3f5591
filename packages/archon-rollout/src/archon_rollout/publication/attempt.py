"""One publication on rank 0: which servers still take part, what happened to the others, and how long it took."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from archon_core.contracts.serving import ServerDriver
from archon_core.contracts.weight_transport import Outcome, PendingBucket, WeightTransport
from archon_core.errors import ServerError
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.record import ServerRecord, ServerState
from archon_rollout.publication.calls import MAX_CALLS, ServerCall, call_each
from archon_rollout.publication.report import BucketTiming, FailedServer, Phase, Publication

logger = logging.getLogger(__name__)

RECONCILE_SECONDS = 10.0
"""Longest limit of a call that finds out, or undoes, what another call did. A server that has just used up the limit of
that call should not delay the others by as much again."""


def settled_state(driver: ServerDriver, server: ServerRecord, *, timeout: float) -> ServerState:
    """A server's state after an uncertain call. If it is paused, it is resumed: a pause whose caller gave up may have
    been executed later.

    Raises:
        ServerError: it does not answer, another incarnation answers, or it stays paused.
    """
    state = driver.state(server, timeout=timeout)
    if state.incarnation == server.incarnation and state.paused:
        driver.resume(server, timeout=timeout)
        state = driver.state(server, timeout=timeout)
    if state.incarnation != server.incarnation:
        raise ServerError(f"another incarnation answered: {state.incarnation}; the server was restarted")
    if state.paused:
        raise ServerError("it stays paused although it was resumed")
    return state


def reconcile_limit(timeout: float) -> float:
    """The time limit of a call that finds out, or undoes, what another call did, given that of other calls."""
    return min(timeout, RECONCILE_SECONDS)


class Attempt:
    """One publication on rank 0; a context manager that ends its threads.

    Attributes:
        driver: calls the servers.
        servers: the servers that still take part.
    """

    def __init__(self, driver: ServerDriver | None, servers: Sequence[ServerRecord], *, timeout: float) -> None:
        assert driver is not None, "rank 0 has a driver"
        self.driver = driver
        self.servers = list(servers)
        self._timeout = timeout
        self._failed: list[FailedServer] = []
        self._seconds: dict[Phase, float] = {}
        self._buckets: list[BucketTiming] = []
        self._phase: Phase = "prepare"
        self._pool = ThreadPoolExecutor(max(1, min(MAX_CALLS, len(servers))), thread_name_prefix="publish")

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=False)

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Measure a phase; failures inside are its."""
        self._phase, start = name, time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def call(self, call: ServerCall) -> None:
        """Call all remaining servers; those that fail leave."""
        self.settle(call_each(self._pool, self.servers, call))

    def states(self) -> list[ServerState | None]:
        """The states of the remaining servers; ``None`` for one that does not answer."""
        return list(self._pool.map(self._state, self.servers))

    def settle(self, outcomes: Mapping[str, Outcome]) -> None:
        """Remove the servers that failed."""
        staying = []
        for server in self.servers:
            outcome = outcomes.get(server.incarnation)
            if outcome is None or not outcome.error:
                staying.append(server)
            else:
                reason = _without_address(server, outcome.error)
                logger.warning("server %s failed in %s: %s", server.address, self._phase, reason)
                self._failed.append(FailedServer(server, self._phase, reason, None))
        self.servers = staying

    def settle_bucket(self, transport: WeightTransport, pending: PendingBucket, n_bytes: int, gathered: float) -> None:
        """Wait for a bucket."""
        start = time.perf_counter()
        self.settle(transport.wait(pending))
        self._buckets.append(BucketTiming(n_bytes, gathered, time.perf_counter() - start))

    def examine_failed(self, version: int) -> None:
        """Abort the update on servers that failed, so that a late commit is refused, and query their states."""

        def examine(failed: FailedServer) -> FailedServer:
            server, timeout = failed.server, reconcile_limit(self._timeout)
            for call in (
                lambda: self.driver.abort_update(server, version, timeout=timeout),
                lambda: settled_state(self.driver, server, timeout=timeout),
            ):
                try:
                    state = call()
                except Exception as error:
                    logger.warning("server %s: %s", server.address, _without_address(server, str(error)))
                    return failed
            return replace(failed, state=state)

        self._failed = list(self._pool.map(examine, self._failed))

    def result(self, manifest: WeightManifest) -> Publication:
        """The result, when nothing more is to come."""
        return Publication(
            manifest.version,
            tuple(self.servers),
            tuple(self._failed),
            manifest.n_bytes,
            tuple(self._buckets),
            dict(self._seconds),
        )

    def _state(self, server: ServerRecord) -> ServerState | None:
        try:
            return settled_state(self.driver, server, timeout=reconcile_limit(self._timeout))
        except Exception as error:
            reason = _without_address(server, str(error))
            logger.warning("server %s does not tell its state: %s", server.address, reason)
            return None


def _without_address(server: ServerRecord, reason: str) -> str:
    """A reason for a line that begins with the server's address, as most reasons do."""
    return reason.removeprefix(f"server {server.address}: ")
