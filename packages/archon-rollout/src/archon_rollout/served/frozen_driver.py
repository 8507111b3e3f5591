"""A driver of servers whose weights must stay those of their checkpoint, such as a teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from archon_core.contracts.rollout import Completion, GenerationRequest, ScoredModel
from archon_core.contracts.serving import ServerDriver
from archon_core.errors import ServerError
from archon_core.serving.record import ServerCapabilities, ServerRecord
from archon_core.serving.scores import Scores, ScoringRequest
from archon_engine.checkpoint.fingerprint import checkpoint_fingerprint


class FrozenDriver:
    """The part of a ``ServerDriver`` that requests need; checks the model of servers, and the version of scores.

    Args:
        driver: calls the servers.
        model: the model that they must have.
        option: section of the servers, for messages.
        timeout: limit of the calls that check a server, in seconds.
    """

    def __init__(self, driver: ServerDriver, model: ScoredModel, *, option: str, timeout: float) -> None:
        self._driver, self._model, self._option, self._timeout = driver, model, option, timeout
        self._versions: dict[str, int] = {}
        folder = Path(model.path).expanduser()
        self._fingerprint = checkpoint_fingerprint(folder) if folder.is_dir() else ""
        self.unidentified: list[str] = []
        """Addresses of servers whose checkpoint could not be compared."""

    @property
    def capabilities(self) -> ServerCapabilities:
        """See ``ServerDriver``."""
        return self._driver.capabilities

    def admit(self, server: ServerRecord, *, started_here: bool) -> None:
        """Check the model of a server before its first request.

        Args:
            server: the server.
            started_here: whether this run started it from the model's path, so that only its state is checked.

        Raises:
            ServerError: the server has another model or vocabulary, or got other weights; or a call failed.
        """
        if server.incarnation in self._versions:
            return
        info = self._driver.describe_model(server, timeout=self._timeout)
        where, model = f"{self._option}: server {server.address}", self._model
        if info.vocab_size is not None and info.vocab_size < model.vocab_size:
            raise ServerError(
                f"{where}: found a vocabulary of {info.vocab_size} tokens ({info.name}); allowed is at least "
                f"{model.vocab_size}, the actor's; serve a model with the actor's vocabulary"
            )
        version = self._driver.state(server, timeout=self._timeout).version
        if version != info.version:
            raise ServerError(
                f"{where}: found weights of version {version}, published to it after its start; allowed are those of "
                f"its checkpoint {info.name}; start a server that no other run updates"
            )
        if not started_here:
            if not (info.fingerprint and self._fingerprint):
                self.unidentified.append(server.address)
            elif info.fingerprint != self._fingerprint:
                raise ServerError(
                    f"{where}: found the model {info.name}, with another configuration or other weights than "
                    f"{model.path}; allowed is the model of {model.path}; serve it, or correct the path or the address"
                )
        self._versions[server.incarnation] = version

    def ready(self, address: str, *, timeout: float) -> ServerRecord | None:
        """See ``ServerDriver``."""
        return self._driver.ready(address, timeout=timeout)

    async def generate(
        self, server: ServerRecord, request: GenerationRequest, *, request_id: str, timeout: float
    ) -> list[Completion]:
        """See ``ServerDriver``."""
        return await self._driver.generate(server, request, request_id=request_id, timeout=timeout)

    def abort(self, server: ServerRecord, request_ids: Sequence[str] | None, *, timeout: float) -> None:
        """See ``ServerDriver``."""
        self._driver.abort(server, request_ids, timeout=timeout)

    def is_generating(self, server: ServerRecord, *, timeout: float) -> bool:
        """See ``ServerDriver``."""
        return self._driver.is_generating(server, timeout=timeout)

    async def score(self, server: ServerRecord, request: ScoringRequest, *, timeout: float) -> Scores:
        """See ``ServerDriver``.

        Raises:
            ServerError: also if the server's weights have changed.
        """
        scores = await self._driver.score(server, request, timeout=timeout)
        expected = self._versions.get(server.incarnation)
        if scores.version != expected:
            self._versions.pop(server.incarnation, None)  # it is checked again before it may rejoin
            raise ServerError(
                f"{self._option}: server {server.address}: found scores of weights of version {scores.version}; "
                "allowed is the version of its checkpoint; start a server that no other run updates"
            )
        return scores
