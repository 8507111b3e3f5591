"""Scores sequences on servers with frozen weights: a teacher that needs no place on the trainer's ranks.

Rank 0 calls the servers and broadcasts what they answer. A server that dies leaves the pool, and its requests move to
others; without any server the run ends with an error that says why.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from archon_core.contracts.decisions import Decision
from archon_core.contracts.rollout import RolloutConfig, ScoredModel
from archon_core.contracts.server_registry import ServerRegistry
from archon_core.contracts.serving import ServerDriver, ServerDriverSpec
from archon_core.errors import ConfigError, ServerError, TrainingError
from archon_core.layout import backend_table, parse_layout
from archon_core.plugins import registry
from archon_core.plugins.inference_engines import inference_engines
from archon_core.ranks.failing_together import failing_together
from archon_core.ranks.ranks import Ranks
from archon_core.serving.descriptors import connection_limit
from archon_core.serving.model_folder import Architecture
from archon_core.serving.record import ServerRecord
from archon_core.serving.run_token import TOKEN
from archon_core.serving.scores import Scores, ScoringRequest
from archon_rollout.pool.asking import answers_until_empty
from archon_rollout.pool.client import PoolClient
from archon_rollout.pool.pool import Pool
from archon_rollout.pool.stopping import Stop, interrupting, never, results_unless_stopped
from archon_rollout.registries.addresses import AddressRegistry
from archon_rollout.registries.memory import MemoryRegistry
from archon_rollout.served.finding import missing_servers
from archon_rollout.served.frozen_driver import FrozenDriver
from archon_rollout.served.launching import ServerProcesses

logger = logging.getLogger(__name__)

REQUESTS_PER_SERVER = 2
"""Requests in progress per server: one that it computes, and one that waits."""


class ScoringServers:
    """Implements ``contracts.rollout.ScoringEngine``; see ``ScoringEngineFactory`` for the arguments.

    Attributes:
        decisions: what could not be checked, the same on every rank.

    Raises:
        ConfigError, ServerError: on every rank, if a server cannot be started or reached, or has another model.
    """

    def __init__(
        self,
        config: RolloutConfig,
        model: ScoredModel,
        *,
        option: str,
        ranks: Ranks,
        folder: Path,
        options: Any = None,
        devices_before: int = 0,
        stop: Stop = never,
    ) -> None:
        # The weights never change, and this transport needs nothing inside foreign servers.
        self._config = config = replace(config, weight_transport="disk")
        self._model, self._option, self._ranks = model, option, ranks
        self._stop = stop
        self._processes: ServerProcesses | None = None
        self._pool: Pool | None = None
        self._client: PoolClient | None = None
        self._driver: FrozenDriver | None = None
        self._started: frozenset[str] = frozenset()
        try:
            with interrupting(), failing_together(ranks):
                if ranks.is_first:
                    self._start(folder, options, devices_before)
        except BaseException:
            self.close()
            raise
        unidentified = [] if self._driver is None else self._driver.unidentified
        self.decisions = self._identity_decisions(ranks.broadcast(sorted(unidentified)))

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """See ``ScoringEngine``."""
        rows: list[list[float]] = []
        with interrupting(), failing_together(self._ranks):
            if self._ranks.is_first:
                rows = self._score(list(requests_of(sequences, self._model)))
        return self._ranks.broadcast(rows)

    def close(self) -> None:
        """See ``ScoringEngine``."""
        if self._pool is not None:
            self._pool.stop()
        if self._processes is not None:
            self._processes.stop()

    def _start(self, folder: Path, options: Any, devices_before: int) -> None:
        """Start the servers, or connect to running ones; rank 0 only."""
        config, option = self._config, self._option
        table = backend_table((), inference_engines(registry()))
        layout = parse_layout(config.backend, backends=table, option=f"{option}.backend")
        token = os.environ.get(TOKEN) or secrets.token_urlsafe(24)
        spec = registry().get(ServerDriverSpec, layout.backend)
        driver: ServerDriver = spec.load()(config, options=options, token=token)
        if not driver.capabilities.scores:
            raise ConfigError(
                f"{option}.backend: found {config.backend}, whose servers do not compute log-probabilities of given "
                "tokens; choose another kind, such as served:d1"
            )
        if self._model.temperature != 1 and not driver.capabilities.score_temperatures:
            raise ConfigError(
                f"gconfig.temperature: found {self._model.temperature:g} with {option}.backend={config.backend}, whose "
                "servers score at temperature 1 only; set gconfig.temperature=1, or choose served:d1"
            )
        self._driver = FrozenDriver(driver, self._model, option=option, timeout=config.health_check_timeout_seconds)
        if config.addresses:
            self._check_reachable(driver)
            servers: ServerRegistry = AddressRegistry(config.addresses, layout.backend)
        else:
            self._processes = ServerProcesses(
                driver,
                layout,
                model=Architecture(Path(self._model.path), self._model.dtype or "", self._model.run_as),
                folder=folder,
                frozen=True,
                option=option,
                environment=own.env_vars if (own := config.scheduling_spec) is not None else None,
                devices_before=devices_before,
                stop=self._stop,
            )
            servers = MemoryRegistry()
            for record in self._processes.start(timeout=config.setup_timeout):
                servers.announce(record.incarnation, record, ttl=math.inf)
                self._started |= {record.incarnation}
        self._pool = Pool(servers, self._driver, config, section=option, stop=self._stop)
        self._client = PoolClient(self._pool, self._driver, config, section=option, max_connections=connection_limit())
        self._pool.start()
        refused = [reason for reason in self._admit_newcomers().values() if reason]
        if refused:
            raise ConfigError("\n".join(refused))

    def _check_reachable(self, driver: ServerDriver) -> None:
        timeout = self._config.health_check_timeout_seconds
        missing = missing_servers(driver, self._config.addresses, timeout=timeout, stop=self._stop)
        if missing:
            raise ConfigError(
                f"{self._option}.addresses: found no server at {', '.join(missing)}; start it with the model "
                f"{self._model.path}, and with the same {TOKEN} as the trainer"
            )

    def _admit_newcomers(self) -> Mapping[str, str]:
        """Wait until there are enough servers, and let those with the right model into service.

        Returns:
            Incarnation -> why it is refused; empty for a server in service.

        Raises:
            ServerError, TrainingError: too few servers are left; says which ones left and why.
        """
        assert self._pool is not None
        self._check_processes()
        self._pool.wait_for_receivers()
        receivers = self._pool.receivers()
        refusals = results_unless_stopped(
            [partial(self._refusal, server) for server in receivers], self._stop, doing="checked the models of servers"
        )
        outcomes = {server.incarnation: refusal for server, refusal in zip(receivers, refusals, strict=True)}
        self._pool.committed(0, outcomes)
        decision = self._pool.decide()
        if decision.changed:
            logger.log(logging.WARNING if decision.evicted else logging.INFO, "%s: %s", self._option, decision.reason)
        return outcomes

    def _refusal(self, server: ServerRecord) -> str:
        """Why a server may not score; empty if it may."""
        assert self._driver is not None
        try:
            self._driver.admit(server, started_here=server.incarnation in self._started)
        except ServerError as error:
            logger.warning("%s", error)
            return str(error)
        return ""

    def _check_processes(self) -> None:
        """Raise ServerError if no server is left because the processes have ended."""
        assert self._pool is not None
        if self._processes is not None and self._pool.is_empty():
            try:
                self._processes.check()
            except ServerError as error:
                raise ServerError(f"{self._option}: {error}") from error

    def _score(self, requests: Sequence[ScoringRequest]) -> list[list[float]]:
        assert self._pool is not None
        answered: dict[int, Scores] = {}
        deadline = time.monotonic() + self._config.setup_timeout
        while len(answered) < len(requests):
            self._admit_newcomers()
            if self._pool.is_empty() and time.monotonic() >= deadline:  # servers come back, but are refused
                raise TrainingError(self._pool.explain_lack(0))
            missing = {n: request for n, request in enumerate(requests) if n not in answered}
            found = asyncio.run(self._ask(missing))
            if found:
                answered |= found
                deadline = time.monotonic() + self._config.setup_timeout
        return [list(row) for n in range(len(requests)) for row in answered[n].logprobs]

    async def _ask(self, requests: Mapping[int, ScoringRequest]) -> dict[int, Scores]:
        """The scores of the requests that end before no server is left."""
        assert self._client is not None
        assert self._pool is not None
        client, pool = self._client, self._pool
        places = asyncio.Semaphore(REQUESTS_PER_SERVER * len(pool.target_server_addresses))

        async def ask(request: ScoringRequest) -> Scores:
            async with places:
                return await client.score(request)

        try:
            return await answers_until_empty(pool, {n: ask(request) for n, request in requests.items()})
        except ServerError:
            self._check_processes()  # the end of a server's log says more
            raise

    def _identity_decisions(self, addresses: Sequence[str]) -> list[Decision]:
        if not addresses:
            return []
        reason = "the server does not report which weights it loaded, or the path is no local folder"
        effective = f"the models of {', '.join(addresses)}, compared by their vocabulary alone"
        return [Decision(f"{self._option}.addresses", f"servers of {self._model.path}", effective, reason)]


def requests_of(sequences: Sequence[Sequence[int]], model: ScoredModel) -> Iterator[ScoringRequest]:
    """Consecutive sequences in requests of at most ``model.max_tokens``; a longer sequence is sent alone."""
    chosen: list[tuple[int, ...]] = []
    n_tokens = 0
    for sequence in sequences:
        if chosen and n_tokens + len(sequence) > model.max_tokens:
            yield ScoringRequest(tuple(chosen), model.temperature)
            chosen, n_tokens = [], 0
        chosen.append(tuple(sequence))
        n_tokens += len(sequence)
    if chosen:
        yield ScoringRequest(tuple(chosen), model.temperature)
