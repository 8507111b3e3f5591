"""The inference engine ``served``: our own servers, which the trainer starts, feeds with prompts and gives its weights.

Rank 0 calls the servers and broadcasts what they answer, so every rank has the same completions.
"""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from archon_core.contracts.engine import TrainEngine
from archon_core.contracts.rollout import Completion, GenerationRequest, RolloutConfig
from archon_core.contracts.serving import TransportContext, WeightTransportSpec
from archon_core.errors import ConfigError, ServerError, TrainingError
from archon_core.layout import Layout, backend_table, parse_layout
from archon_core.plugins import InferenceEngineSpec, registry
from archon_core.ranks.failing_together import failing_together
from archon_core.serving.record import ServerRecord
from archon_rollout.publication.canary import Canary
from archon_rollout.publication.publisher import Publisher, PublisherOptions
from archon_rollout.publication.report import Publication
from archon_rollout.served.driver import ServedDriver
from archon_rollout.served.launching import ServerProcesses
from archon_rollout.served.model_files import write_architecture
from archon_rollout.server.environment import TOKEN

logger = logging.getLogger(__name__)

CANARY = Canary(prompt_ids=(1, 2, 3))
"""Token ids that every vocabulary has."""


class ServedEngine:
    """Samples on servers; implements ``contracts.rollout.InferenceEngine``. Every method is collective.

    Args:
        config: the section ``rollout``.
        trainer: provides the weights.
        folder: for logs of the servers; ``None`` for a temporary folder.

    Raises:
        ServerError: on every rank, if a server cannot be started or reached.
    """

    def __init__(self, config: RolloutConfig, *, trainer: TrainEngine, folder: Path | None = None) -> None:
        self._config = config
        self._trainer = trainer
        self._ranks = trainer.data_ranks.everyone
        self._paused = self._closed = False
        self._version = -1
        self._servers: list[ServerRecord] = []
        self._driver: ServedDriver | None = None
        self._processes: ServerProcesses | None = None
        self._publisher: Publisher | None = None
        self._architecture: Path | None = None
        self.last_publication: Publication | None = None
        try:
            with failing_together(self._ranks):
                if self._ranks.is_first:
                    folder = folder or Path(tempfile.mkdtemp(prefix="archon-servers-"))
                    self._start(folder)
                self._publisher = self._build_publisher(folder)
        except BaseException:
            self.close()
            raise

    @property
    def version(self) -> int:
        """The version of the weights that all servers have; -1 before the first ``update_weights``."""
        return self._version

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """Completions per request, in the order of its seeds. Data ranks pass their own requests, possibly none.

        Raises:
            TrainingError: the engine is paused or closed, or has published no weights.
            ServerError: on every rank, if a server failed.
        """
        if self._closed or self._paused or self._version < 0:
            found = "close()" if self._closed else "pause()" if self._paused else "no update_weights()"
            raise TrainingError(f"served engine: generate() was called after {found}")
        if stops := next((request.config.stop for request in requests if request.config.stop), None):
            raise ConfigError(
                f"gconfig.stop: found {stops}; servers that a trainer starts have no tokenizer to find texts; use "
                "stop_token_ids, or rollout.backend=local"
            )
        data_ranks = self._trainer.data_ranks
        # Only data travels between ranks; a decode function is of no use to a server.
        shares = data_ranks.gather([replace(request, decode=None) for request in requests])
        answered: list[list[Completion]] = []
        with failing_together(self._ranks):
            if self._ranks.is_first:
                answered = self._ask([request for share in shares for request in share])
        answered = self._ranks.broadcast(answered)
        start = sum(map(len, shares[: data_ranks.rank]))
        return answered[start : start + len(requests)]

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
        """Publish the trainer's weights, which have ``version``, to all servers. Returns metrics of the publication.

        Raises:
            TrainingError: the trainer holds another version.
            ServerError: on every rank, if a server failed.
        """
        if version != self._trainer.version:
            raise TrainingError(
                f"served engine: found a request for weights of version {version}, but the trainer holds version "
                f"{self._trainer.version}; publish its current weights"
            )
        if version == self._version:
            return {}
        assert self._publisher is not None
        publication = self._publisher.publish(self._servers)
        self.last_publication = publication
        if self._ranks.is_first:
            logger.info(publication.describe())
        if publication.failed:
            reasons = "\n".join(f"  {one.server.address}, in {one.phase}: {one.reason}" for one in publication.failed)
            raise ServerError(
                f"rollout: {len(publication.failed)} of {len(self._servers)} servers did not take the weights of "
                f"version {version}:\n{reasons}\nread the logs of the servers"
            )
        self._version = version
        return publication.metrics()

    def close(self) -> None:
        """Stop the servers that this engine started."""
        self._closed = True
        if self._publisher is not None:
            self._publisher.close()
        if self._processes is not None:
            self._processes.stop()

    def _start(self, folder: Path) -> None:
        """Start the servers, or connect to running ones."""
        layout = _layout_of(self._config)
        token = os.environ.get(TOKEN) or secrets.token_urlsafe(24)
        self._driver = driver = ServedDriver(self._config, token=token)
        if self._config.addresses:
            self._servers = [self._connect(address) for address in self._config.addresses]
            return
        model, options = write_architecture(self._trainer, folder)
        self._architecture = model.parent
        self._processes = ServerProcesses(driver, layout, model=str(model), folder=folder, options=options)
        self._servers = self._processes.start(timeout=self._config.setup_timeout)

    def _connect(self, address: str) -> ServerRecord:
        assert self._driver is not None
        record = self._driver.ready(address, timeout=self._config.setup_timeout)
        if record is None:
            raise ConfigError(
                f"rollout.addresses: found no server at {address}; start it with archon serve, with the same {TOKEN} "
                "as the trainer"
            )
        return record

    def _build_publisher(self, folder: Path | None) -> Publisher:
        config = self._config
        options = PublisherOptions(
            bucket_bytes=config.weight_bucket_mb * 2**20,
            skip_unchanged=config.skip_unchanged,
            timeout=config.weight_timeout,
            canary=CANARY if config.weight_canary else None,
        )
        if self._driver is None:
            return Publisher(self._trainer, None, None, options)
        spec = registry().get(WeightTransportSpec, config.weight_transport)
        allowed = self._driver.capabilities.transports
        if spec.name not in allowed:
            raise ConfigError(
                f"rollout.weight_transport: found {config.weight_transport!r}; these servers receive weights by "
                f"{', '.join(allowed)}; choose one"
            )
        context = TransportContext(
            self._driver,
            run=secrets.token_hex(4),
            folder=folder,
            timeout=options.timeout,
            bucket_bytes=options.bucket_bytes,
            companions=self._architecture,
        )
        return Publisher(self._trainer, self._driver, spec.load()(context), options)

    def _ask(self, requests: list[GenerationRequest]) -> list[list[Completion]]:
        """The completions of all requests, divided among the servers."""
        assert self._driver is not None
        driver, n_servers = self._driver, len(self._servers)
        if not requests:
            return []
        answered: list[list[Completion]] = [[]] * len(requests)
        with ThreadPoolExecutor(n_servers, "archon-generate") as pool:
            calls = [
                pool.submit(driver.generate_all, server, requests[n::n_servers], timeout=self._config.request_timeout)
                for n, server in enumerate(self._servers)
                if n < len(requests)
            ]
            try:
                for n, call in enumerate(calls):
                    answered[n::n_servers] = call.result()
            except ServerError:
                if self._processes is not None:
                    self._processes.check()  # the end of a server's log says more
                raise
        return answered


def _layout_of(config: RolloutConfig) -> Layout:
    table = backend_table((), registry().all(InferenceEngineSpec))
    return parse_layout(config.backend, backends=table, option="rollout.backend")
