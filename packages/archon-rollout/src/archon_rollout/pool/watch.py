"""The thread that watches the servers of a pool: it reads the registry, probes every server, and warms up newcomers.

A probe is a request for one token, because the health route of a server answers also while its engine hangs. The three
actions repeat independently, so that a registry or an address that hangs delays no probe.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.contracts.serving import ServerDriver
from archon_core.errors import NoDescriptorError, ServerError, UncertainCallError
from archon_core.serving.record import ServerRecord
from archon_rollout.pool.member_sources import MemberSources
from archon_rollout.pool.stopping import POLL_SECONDS, in_thread, try_within
from archon_rollout.pool.warming import WarmerLike, start_warm_ups

if TYPE_CHECKING:
    from archon_rollout.pool.pool import Pool

logger = logging.getLogger(__name__)

PROBE_TOKEN = 0
PROBE_PREFIX = "probe-"

STOP_SECONDS = 5.0
"""Time limit of each step of the end: of the thread, of closing the registry, of the last status."""

PROGRESS_SECONDS = 3.0
"""Longest time in which a server that did not answer a probe must generate a token for another request."""


class Watch:
    """Watches the servers of ``pool``.

    Args:
        pool: takes over what is found.
        sources: list the servers.
        driver: calls them.
        options: intervals and time limits.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        pool: Pool,
        sources: MemberSources,
        driver: ServerDriver,
        options: RolloutConfig,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._pool, self._sources, self._driver, self._options = pool, sources, driver, options
        self._clock = clock
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._crash: BaseException | None = None
        self.warmer: WarmerLike | None = None
        """Warms up newcomers; ``None`` to let them join with publications."""

    def start(self) -> None:
        """Start watching."""
        assert self._thread is None, "the pool is watching already"
        self._thread = threading.Thread(target=self._run, name="archon-pool", daemon=True)
        self._thread.start()

    def stop(self) -> bool:
        """Stop watching. Running probes are cancelled. Returns whether it was watching. A registry that hangs delays
        it by a time limit."""
        self._stopping.set()
        if self._thread is None:
            return False
        self._thread.join(STOP_SECONDS)
        self._thread = None
        try_within(STOP_SECONDS, self._sources.close, doing="closing the registry of servers")
        return True

    def wait(self, seconds: float) -> None:
        """Wait, but not after ``stop``."""
        self._stopping.wait(seconds)

    def check(self) -> None:
        """Raise what ended the thread: a pool that nobody watches must not look healthy."""
        if self._crash is not None:
            raise self._crash

    async def refresh(self) -> None:
        """One round: read the registry and probe all servers."""
        await self._read_registry()
        await self._probe_servers()

    def _run(self) -> None:
        try:
            asyncio.run(self._repeat_all())
        except BaseException as error:
            self._crash = error

    async def _repeat_all(self) -> None:
        """Run all actions until the pool stops, then cancel them, whatever they wait for."""
        actions = (self._read_registry, self._probe_servers, self._warm_newcomers)
        tasks = [asyncio.create_task(self._repeat(action)) for action in actions]
        try:
            while not self._stopping.is_set():
                ended, _ = await asyncio.wait(tasks, timeout=POLL_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
                for task in ended:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _repeat(self, action: Callable[[], Awaitable[None]]) -> None:
        """Run an action in every interval."""
        while True:
            await action()
            until = self._clock() + self._options.health_check_interval_seconds
            while self._clock() < until:
                await asyncio.sleep(POLL_SECONDS)

    async def _read_registry(self) -> None:
        listing = await in_thread(self._sources.read)
        found = await asyncio.gather(*(self._identified(record) for record in listing.records))
        records = {record.incarnation: record for record in found if record is not None}
        self._pool.announced(records, registry_error=listing.error)
        await in_thread(self._pool.write_status)

    async def _identified(self, record: ServerRecord) -> ServerRecord | None:
        """The record with its incarnation, which a registry of addresses does not know."""
        if record.incarnation:
            return record
        timeout = self._options.health_check_timeout_seconds
        try:
            found = await in_thread(partial(self._driver.ready, record.address, timeout=timeout))
        except Exception:  # as for calls: see _result_of
            found = None
        if found is not None:
            return replace(found, address=record.address)  # a server on 0.0.0.0 does not know how others reach it
        return self._pool.record_at(record.address)  # the probes decide about a server that is in service

    async def _warm_newcomers(self) -> None:
        if self.warmer is not None:
            start_warm_ups(self._pool, self.warmer)

    async def _probe_servers(self) -> None:
        await asyncio.gather(self._probe_all(), self._watch_draining())
        await in_thread(self._pool.write_status)

    async def _probe_all(self) -> None:
        if not self._options.enable_health_monitor:
            self._pool.rested()  # nothing else would tell that a suspect is well again
            return
        targets = self._pool.probe_targets()
        errors = await asyncio.gather(*(self._probe(record) for record in targets.values()))
        found = zip(targets, errors, strict=True)
        self._pool.probed({name: error for name, error in found if error is not None})

    async def _watch_draining(self) -> None:
        """Find out whether servers that withdrew still work on their requests. They accept no others, also no probe."""
        targets = self._pool.draining()
        timeout = self._options.health_check_timeout_seconds
        calls = (in_thread(partial(self._driver.state, record, timeout=timeout)) for record in targets.values())
        results = await asyncio.gather(*(_result_of(call, timeout) for call in calls))
        for name, (error, _) in zip(targets, results, strict=True):
            if error:
                self._pool.failed(name, f"it withdrew, and does not answer: {error}")

    async def _probe(self, server: ServerRecord) -> str | None:
        """Why a server failed a probe; empty if it did not, ``None`` if it was not asked."""
        timeout = self._options.health_check_timeout_seconds
        request = GenerationRequest((PROBE_TOKEN,), GenerationConfig(max_new_tokens=1, greedy=True), (0,))
        # Servers refuse an id that is still in use, by another pool or by a probe that timed out here.
        call = self._driver.generate(server, request, request_id=f"{PROBE_PREFIX}{uuid.uuid4().hex}", timeout=timeout)
        error, is_silent = await _result_of(call, timeout)
        return "" if is_silent and await self._is_generating(server) else error

    async def _is_generating(self, server: ServerRecord) -> bool:
        """Whether a server that did not answer a probe generates tokens: the probe then waits behind other requests."""
        timeout = min(self._options.health_check_timeout_seconds, PROGRESS_SECONDS)
        try:
            return await in_thread(partial(self._driver.is_generating, server, timeout=timeout))
        except Exception:  # as for calls: see _result_of
            return False


async def _result_of(call: Awaitable[object], timeout: float) -> tuple[str | None, bool]:
    """Why a call failed, empty if it did not, ``None`` if it was not made; and whether there was no answer."""
    try:
        await asyncio.wait_for(call, timeout)
    except NoDescriptorError as error:
        logger.warning("%s", error)
        return None, False
    except ServerError as error:
        return str(error), isinstance(error, UncertainCallError)
    except TimeoutError:
        return f"no answer in {timeout:g} s", True
    except Exception as error:
        # A driver talks to foreign programs; whatever it raises concerns one server, not the watching thread.
        return f"{type(error).__name__}: {error}", False
    return "", False
