"""Generates completions on a pool: repeats failed requests on other servers, and continues aborted ones."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol, TypeVar

from archon_core.contracts.rollout import Completion, GenerationRequest, RolloutConfig
from archon_core.contracts.serving import ServerDriver
from archon_core.errors import RefusedRequestError, ServerError
from archon_core.serving.record import ServerRecord
from archon_core.serving.scores import Scores, ScoringRequest
from archon_rollout.pool.continuation import is_complete, joined, rest_of
from archon_rollout.pool.stopping import POLL_SECONDS

LONGEST_POLL_SECONDS = 0.8
"""Longest time between looks whether the server of a request is still present."""

logger = logging.getLogger(__name__)


class Servers(Protocol):
    """What a client needs of a pool: see ``Pool``."""

    @property
    def version(self) -> int: ...

    @property
    def is_switching(self) -> bool: ...

    def departure(self, incarnation: str) -> str: ...

    def acquire(self, *, tokens: int, group: str = "") -> ServerRecord | None: ...

    def release(self, server: ServerRecord, *, tokens: int, error: str = "") -> None: ...


T = TypeVar("T")


class PoolClient:
    """Implements ``contracts.serving.RolloutClient``.

    Args:
        pool: chooses servers.
        driver: calls them.
        options: time limit and number of attempts.
        section: the section of ``options``, for messages.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        pool: Servers,
        driver: ServerDriver,
        options: RolloutConfig,
        *,
        section: str = "rollout",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool, self._driver, self._options, self._clock = pool, driver, options, clock
        self._section = section
        self._name = uuid.uuid4().hex
        self._numbers = itertools.count()
        self._warned = False

    @property
    def version(self) -> int:
        """The last version that was committed."""
        return self._pool.version

    async def generate(self, request: GenerationRequest, *, group: str = "") -> list[Completion]:
        """The completions of one request, in the order of its seeds.

        Args:
            request: the request.
            group: requests of one group go to the same server while it is in service.

        Raises:
            RefusedRequestError: the request is invalid.
            ServerError: no server completed it in ``request_timeout`` seconds and ``request_retries`` repetitions.
        """
        deadline = self._clock() + self._options.request_timeout
        return await self._complete(request, group, deadline)

    async def _complete(self, request: GenerationRequest, group: str, deadline: float) -> list[Completion]:
        completions = await self._generate(request, group, deadline)
        if all(is_complete(request, completion) for completion in completions):
            return completions
        finishing = (self._finish(request, n, completion, group, deadline) for n, completion in enumerate(completions))
        return list(await asyncio.gather(*finishing))

    async def _finish(
        self, request: GenerationRequest, number: int, completion: Completion, group: str, deadline: float
    ) -> Completion:
        """Go on with a completion that a server ended early, until it is complete."""
        latest = completion
        while not is_complete(request, completion):
            if not latest.token_ids:
                await asyncio.sleep(POLL_SECONDS)  # a paused server would end the request again at once
            [latest] = await self._generate(rest_of(request, number, completion), group, deadline)
            if latest.token_ids or latest.stop_reason != "abort":
                completion = joined(completion, latest, len(request.prompt_ids))
        return completion

    async def score(self, request: ScoringRequest) -> Scores:
        """The scores of one request.

        Raises:
            RefusedRequestError: the request is invalid.
            ServerError: no server completed it in ``request_timeout`` seconds and ``request_retries`` repetitions.
        """

        deadline = self._clock() + self._options.request_timeout

        def call(server: ServerRecord) -> Awaitable[Scores]:
            timeout = max(deadline - self._clock(), POLL_SECONDS)
            return self._attend(server, self._driver.score(server, request, timeout=timeout))

        return await self._repeat(call, request.n_tokens, "", deadline)

    async def _generate(self, request: GenerationRequest, group: str, deadline: float) -> list[Completion]:
        tokens = len(request.prompt_ids) + request.config.max_new_tokens * len(request.seeds)

        def call(server: ServerRecord) -> Awaitable[list[Completion]]:
            return self._call(server, request, deadline)

        return await self._repeat(call, tokens, group, deadline)

    async def _repeat(
        self, call: Callable[[ServerRecord], Awaitable[T]], tokens: int, group: str, deadline: float
    ) -> T:
        failures: list[str] = []
        while len(failures) <= self._options.request_retries:
            server = await self._server(tokens, group, deadline)
            if server is None:
                break
            error = ""
            try:
                return await call(server)
            except RefusedRequestError:
                raise
            except ServerError as failure:
                error = str(failure)
                failures.append(error)
            finally:
                self._pool.release(server, tokens=tokens, error=error)
        raise ServerError(self._explain(failures))

    async def _server(self, tokens: int, group: str, deadline: float) -> ServerRecord | None:
        """A server in service, or ``None`` if there is none until the deadline."""
        while self._clock() < deadline:
            server = self._pool.acquire(tokens=tokens, group=group)
            if server is not None:
                return server
            await asyncio.sleep(POLL_SECONDS)
        return None

    async def _call(self, server: ServerRecord, request: GenerationRequest, deadline: float) -> list[Completion]:
        request_id = f"{self._name}-{next(self._numbers)}"
        timeout = max(deadline - self._clock(), POLL_SECONDS)
        try:
            before = self._pool.version
            generating = self._driver.generate(server, request, request_id=request_id, timeout=timeout)
            completions = await self._attend(server, generating)
            await self._confirm(server, deadline)
            if not self._driver.capabilities.token_versions:
                return self._with_versions(server, completions, min(before, self._pool.version))
            return completions
        except asyncio.CancelledError:
            # Nobody waits for the answer any more: free the server's place.
            abort = asyncio.to_thread(self._driver.abort, server, [request_id], timeout=5.0)
            with suppress(ServerError):
                await asyncio.shield(abort)
            raise

    def _with_versions(self, server: ServerRecord, completions: Sequence[Completion], version: int) -> list[Completion]:
        """Completions of a server that reports no versions: all tokens may be as old as the request's beginning."""
        if not self._warned:
            self._warned = True
            logger.warning(
                "server %s reports no weight versions; tokens are labelled with the version at the beginning of their "
                "request, so those of a request during a publication may look older than they are",
                server.address,
            )
        return [replace(one, versions=(version,) * len(one.token_ids)) for one in completions]

    async def _attend(self, server: ServerRecord, answer: Awaitable[T]) -> T:
        """The answer of a call, unless the server leaves before."""
        call = asyncio.ensure_future(answer)
        call.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # retrieved, also if unused
        poll = POLL_SECONDS
        try:
            while not (await asyncio.wait((call,), timeout=poll))[0]:
                self._check_present(server)
                poll = min(2 * poll, LONGEST_POLL_SECONDS)  # hundreds of requests wait at a time
            return call.result()
        finally:
            call.cancel()

    async def _confirm(self, server: ServerRecord, deadline: float) -> None:
        """Wait until it is known whether a server has the weights that it claims.

        Between its switch to new weights and the end of the canary, a server may label tokens with the wrong version.

        Raises:
            ServerError: it does not have them, left for another reason, or it is not known until the deadline.
        """
        while self._pool.is_switching:
            if self._clock() >= deadline:
                raise ServerError(f"server {server.address}: it is not known whether it has the published weights")
            await asyncio.sleep(POLL_SECONDS)
        self._check_present(server)

    def _check_present(self, server: ServerRecord) -> None:
        if reason := self._pool.departure(server.incarnation):
            raise ServerError(f"server {server.address} left before its answer was used: {reason}")

    def _explain(self, failures: list[str]) -> str:
        options, section = self._options, self._section
        if not failures:
            return (
                f"{section} request: found no server in service for {options.request_timeout:g} s; allowed is "
                f"{section}.request_timeout; start servers, or raise it"
            )
        repeated = "\n".join(f"  {failure}" for failure in failures)
        return (
            f"{section} request: {len(failures)} attempts failed ({section}.request_retries="
            f"{options.request_retries}, {section}.request_timeout={options.request_timeout:g} s); repair the servers, "
            f"or raise the limits\n{repeated}"
        )
