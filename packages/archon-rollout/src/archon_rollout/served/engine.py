"""The inference engine of every kind of server: it starts servers, feeds them with prompts, and publishes weights.

``rollout.backend`` names the kind: ``served`` our own, ``vllm`` or ``sglang`` with their packages, or any other kind
that a plugin has a ``ServerDriver`` for.

Rank 0 calls the servers and broadcasts what they answer, so every rank has the same completions and knows the same
servers. Training goes on while enough servers are in service.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from archon_core.contracts.engine import TrainEngine
from archon_core.contracts.rollout import Completion, GenerationRequest, RolloutConfig
from archon_core.contracts.serving import ServerDriverSpec
from archon_core.errors import ServerError, TrainingError
from archon_core.layout import backend_table, parse_layout
from archon_core.plugins import registry
from archon_core.plugins.inference_engines import inference_engines
from archon_core.plugins.transport_choice import choose_transport, may_be_elsewhere
from archon_core.ranks.failing_together import failing_together
from archon_core.serving.discovery import Discovery
from archon_core.serving.record import ServerRecord
from archon_rollout.pool.asking import answers_until_empty
from archon_rollout.pool.members import TopologyDecision
from archon_rollout.pool.stopping import Stop, interrupting, never
from archon_rollout.publication.adapters import publish_apart
from archon_rollout.publication.publisher import Publisher
from archon_rollout.publication.report import Publication
from archon_rollout.served.beside_trainer import BesideTrainer
from archon_rollout.served.connection import Connection, connect
from archon_rollout.served.elastic_hooks import ElasticHooks
from archon_rollout.served.launching import ServerProcesses
from archon_rollout.served.publishing import build_publisher
from archon_rollout.stop_texts import cut_at_stop_text, without_stop_texts

logger = logging.getLogger(__name__)


class ServedEngine(BesideTrainer, ElasticHooks):
    """Samples on servers; implements ``contracts.rollout.InferenceEngine``. Every method is collective.

    Args:
        config: the section ``rollout``.
        trainer: provides the weights.
        folder: for logs of the servers; ``None`` for a temporary folder.
        options: the section of the kind of server, such as ``vllm``; ``None`` for its defaults.
        discovery: where servers that the run does not start are listed; ``None`` for nowhere.
        stop: whether the user has asked the run to stop. It ends waits for servers.
        clock: of the pool, in seconds, never going back.
        bucket_bytes: size of the buckets of weights; ``None`` for ``rollout.weight_bucket_mb``.

    Attributes:
        decisions: what the engine chose.
        topology: the servers in service, the same on every rank.
        last_publication: how the last publication went, the same on every rank.
        transport_run: id of the first rank's weight transport, part of names in shared memory.

    Raises:
        ConfigError: this kind of server does not receive weights by ``rollout.weight_transport``.
        ServerError: on every rank, if a server cannot be started or reached.
        KeyboardInterrupt: on every rank, if the user stopped the run while it waited for servers. Methods that publish
            raise it, too.
    """

    def __init__(
        self,
        config: RolloutConfig,
        *,
        trainer: TrainEngine,
        folder: Path | None = None,
        options: Any = None,
        discovery: Discovery | None = None,
        stop: Stop = never,
        clock: Callable[[], float] = time.monotonic,
        bucket_bytes: int | None = None,
    ) -> None:
        table = backend_table((), inference_engines(registry()))
        self._layout = parse_layout(config.backend, backends=table, option="rollout.backend")
        self._kind = registry().get(ServerDriverSpec, self._layout.backend)
        self._trainer = trainer
        self._ranks = trainer.data_ranks.everyone
        elsewhere = config.weight_transport is None and self._ranks.broadcast(may_be_elsewhere(config))
        transport, self.decisions = choose_transport(
            config.weight_transport, self._layout, self._kind, registry(), elsewhere=elsewhere
        )
        self._config = replace(config, weight_transport=transport)
        adapter, told = publish_apart(self._config, self._kind, trainer)
        # For drivers, which name adapters in requests only if some are published.
        self._config = replace(self._config, use_lora=adapter is not None)
        self.decisions = [*self.decisions, *told]
        self._options = options
        self._paused = self._closed = False
        self._version = -1
        self._bucket_bytes = bucket_bytes
        self._folder = folder
        self._connection: Connection | None = None
        self._processes: ServerProcesses | None = None
        self._publisher: Publisher | None = None
        self.topology = TopologyDecision(0)
        self.last_publication: Publication | None = None
        try:
            with interrupting(), failing_together(self._ranks):
                if self._ranks.is_first:
                    self._folder = folder or Path(tempfile.mkdtemp(prefix="archon-servers-"))
                    self._use(
                        connect(
                            self._config,
                            self._layout,
                            self._kind,
                            trainer=trainer,
                            folder=self._folder,
                            options=options,
                            discovery=discovery,
                            stop=stop,
                            clock=clock,
                            adapter=adapter,
                        )
                    )
                self._publisher = self._build_publisher()
        except BaseException:
            self.close()
            raise

    @property
    def version(self) -> int:
        """The version of the weights of the servers in service; -1 before the first ``update_weights``."""
        return self._version

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """Completions per request, in the order of its seeds. Data ranks pass their own requests, possibly none.

        Servers have no tokenizer, so they generate past stop texts; completions are cut here.

        Raises:
            TrainingError: the engine is paused or closed, or has published no weights; or too few servers are left.
            ServerError: on every rank, if servers in service could not complete a request, or if all servers left
                again and again without completing one.
        """
        if self._closed or self._paused or self._version < 0:
            found = "close()" if self._closed else "pause()" if self._paused else "no update_weights()"
            raise TrainingError(f"{self._kind.name} engine: generate() was called after {found}")
        data_ranks = self._trainer.data_ranks
        shares = data_ranks.gather([without_stop_texts(request) for request in requests])
        pending = [request for share in shares for request in share]
        answered: dict[int, list[Completion]] = {}
        fruitless = 0
        while True:
            with failing_together(self._ranks):
                if self._ranks.is_first:
                    missing = {n: request for n, request in enumerate(pending) if n not in answered}
                    assert self._client is not None
                    assert self._pool is not None
                    calls = {n: self._client.generate(request) for n, request in missing.items()}
                    had_servers = not self._pool.is_empty()
                    found = asyncio.run(answers_until_empty(self._pool, calls))
                    answered |= found
                    fruitless = 0 if found else fruitless + (had_servers and bool(missing))
                    if fruitless > max(1, self._config.request_retries):
                        raise ServerError(self._pool.explain_losses(fruitless))
            if self._ranks.broadcast(len(answered) == len(pending)):
                break
            self._publish()  # no server is left: wait for others, which need the weights
        everything = self._ranks.broadcast([answered[n] for n in sorted(answered)])
        start = sum(map(len, shares[: data_ranks.rank]))
        mine = everything[start : start + len(requests)]
        return [
            [cut_at_stop_text(completion, request) for completion in completions]
            for request, completions in zip(requests, mine, strict=True)
        ]

    def health(self) -> bool:
        """Whether ``generate`` accepts requests. Not collective."""
        return not (self._paused or self._closed) and self._version >= 0

    def pause(self) -> None:
        """Refuse requests until ``resume``."""
        self._paused = True

    def resume(self) -> None:
        """Accept requests again."""
        self._paused = False

    def update_weights(self, version: int) -> Mapping[str, float]:
        """Publish the trainer's weights, which have ``version``, to all servers, newcomers included.

        Without an update and newcomers, nothing is published; the ranks still agree on the servers of the step.

        Returns:
            Metrics of the publication.

        Raises:
            TrainingError: the trainer holds another version; or fewer than ``rollout.min_servers`` took the weights.
        """
        if version != self._trainer.version:
            raise TrainingError(
                f"{self._kind.name} engine: found a request for weights of version {version}, but the trainer holds "
                f"version {self._trainer.version}; publish its current weights"
            )
        self.maybe_rebuild_weight_update_group()
        if version == self._version and not self._ranks.broadcast(
            self._pool is not None and self._pool.has_newcomers()
        ):
            self._decide_unpublished()
            if len(self.topology.members) >= self._config.min_servers:
                return {"publish/servers": len(self.topology.members), "publish/failed": 0}
        return self._publish().metrics()

    def close(self) -> None:
        """Stop the servers that this engine started."""
        self._closed = True
        if self._pool is not None:
            self._pool.stop()
        if self._publisher is not None:
            self._publisher.close()
        if self._processes is not None:
            self._processes.stop()

    def restart_transport(self) -> None:
        """Free what the weight transport holds and allocate it anew, between two publications. First rank only."""
        if self._publisher is not None:
            self._publisher.close()
        self._publisher = self._build_publisher()

    def _use(self, connection: Connection) -> None:
        self._connection = connection
        self._driver, self._token, self._processes = connection.driver, connection.token, connection.processes
        self._pool, self._client = connection.pool, connection.client

    def _build_publisher(self) -> Publisher:
        self.transport_run = secrets.token_hex(4)
        return build_publisher(
            self._config,
            self._layout,
            self._kind,
            self._connection,
            trainer=self._trainer,
            folder=self._folder,
            run=self.transport_run,
            bucket_bytes=self._bucket_bytes,
        )

    def _publish(self) -> Publication:
        """Give the trainer's weights to the servers in service and to newcomers, until there are enough."""
        assert self._publisher is not None
        deadline = time.monotonic() + self._config.setup_timeout
        while True:
            receivers: list[ServerRecord] = []
            with interrupting(), failing_together(self._ranks):
                if self._ranks.is_first:
                    receivers = self._wait_for_receivers()
            publication = self._publisher.publish(receivers, on_commit=self._switching)
            self.last_publication = publication
            with failing_together(self._ranks):
                if self._ranks.is_first:
                    self.topology = self._take_over(publication, late=time.monotonic() >= deadline)
            self.topology = self._ranks.broadcast(self.topology)
            if len(self.topology.members) >= self._config.min_servers:
                self._version = publication.version
                return publication

    def _wait_for_receivers(self) -> list[ServerRecord]:
        """The servers of the next publication; rank 0 only."""
        assert self._pool is not None
        if self._processes is not None and self._pool.is_empty() and not self._pool.has_newcomers():
            self._processes.check()  # the ends of the logs say why
        return self._pool.wait_for_receivers()

    def _take_over(self, publication: Publication, *, late: bool) -> TopologyDecision:
        """The decision after a publication; rank 0 only.

        Raises:
            TrainingError: too few servers took the weights, and the time for others is over.
        """
        assert self._pool is not None
        outcomes = {server.incarnation: "" for server in publication.committed}
        outcomes |= {one.server.incarnation: f"{one.phase}: {one.reason}" for one in publication.failed}
        self._pool.committed(publication.version, outcomes)
        decision = self._decide()
        # A report per step would hide the rest of the log; the metrics have its numbers.
        unusual = decision.joined or publication.failed
        logger.log(logging.INFO if unusual else logging.DEBUG, publication.describe())
        if late and len(decision.members) < self._config.min_servers:
            raise TrainingError(self._pool.explain_lack(len(decision.members)))
        return decision

    def _decide_unpublished(self) -> None:
        """Agree on the servers of a step that publishes nothing."""
        with failing_together(self._ranks):
            if self._ranks.is_first:
                self.topology = self._decide()
        self.topology = self._ranks.broadcast(self.topology)

    def _decide(self) -> TopologyDecision:
        """The servers of the step; rank 0 only."""
        assert self._pool is not None
        decision = self._pool.decide()
        if decision.changed:
            level = logging.WARNING if decision.evicted else logging.INFO
            logger.log(level, "servers of epoch %d: %s", decision.epoch, decision.reason)
        return decision
