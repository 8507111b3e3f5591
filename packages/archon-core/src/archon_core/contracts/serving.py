"""Inference servers: drivers, and the client that workflows use.

The messages and formats are in ``archon_core.serving``. Blocking methods take a time limit and never wait longer; the
trainer's rank 0 calls them from one thread per server. ``generate`` is a coroutine, because a collector has hundreds of
requests in progress.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from archon_core.contracts.rollout import InferenceEngine
from archon_core.contracts.spec import Spec

if TYPE_CHECKING:
    from archon_core.contracts.rollout import Completion, GenerationRequest
    from archon_core.layout import Layout
    from archon_core.serving.manifest import WeightManifest
    from archon_core.serving.record import PauseMode, ServerCapabilities, ServerLaunch, ServerRecord, ServerState
    from archon_core.serving.scores import Scores, ScoringRequest, ServedModelInfo
    from archon_core.serving.update import BucketNotice, Receipt, UpdatePlan


@dataclass(frozen=True)
class ServerDriverSpec(Spec):
    """A kind of inference server. ``target`` names a ``ServerDriverFactory``.

    Attributes:
        letters: axis letters of layouts that the kind understands; ``d`` is the number of servers.
        transports: names of the weight transports that the kind receives from, the preferred one first.
        one_rank: those of them that reach servers of one rank only.
        adapters: whether the kind can receive adapters apart from the weights that they adapt, as tensors of a version.
        adapter_folders: names of the weight transports with which the kind can receive them as a folder in PEFT's
            format, ``adapter`` inside that of a version.
        check: target of ``check(config, *, layout, option) -> ServerCheck``, which examines a run's whole
            configuration. ``layout``, of this kind, is the ``backend`` of its section ``option``: ``rollout``, or
            ``teacher.rollout`` for servers that only score. It must not import torch: dry runs call it.
    """

    kind: ClassVar[str] = "server_driver"
    hook: ClassVar[str] = "archon_server_drivers"

    letters: str = "dt"
    transports: tuple[str, ...] = ("disk",)
    one_rank: tuple[str, ...] = ()
    adapters: bool = False
    adapter_folders: tuple[str, ...] = ()
    check: str = ""

    def transports_for(self, layout: Layout) -> tuple[str, ...]:
        """The transports that reach the servers of ``layout``, the preferred one first."""
        ranks = layout.dims["t"] * layout.dims["p"]
        return tuple(name for name in self.transports if ranks == 1 or name not in self.one_rank)


@dataclass(frozen=True)
class ServerCheck:
    """Problems of the servers that a run would start.

    Attributes:
        problems: errors in the configuration, one sentence each.
        program: the server's program, such as ``vllm``, if this machine lacks it; empty otherwise.
        missing: what is the matter with it, and how to install it: ``is not installed ...``.
    """

    problems: tuple[str, ...] = ()
    program: str = ""
    missing: str = ""


class ServerDriver(Protocol):
    """Controls servers of one kind over their own interface.

    ``server`` names the incarnation that the caller means; a call that reaches another one fails. Every blocking method
    takes a time limit in seconds.

    Every method that calls a server raises ServerError if the server refused, failed or answered something invalid, and
    UncertainCallError without an answer within the time limit. The server may still execute such a call later, so query
    ``state`` before any other call.
    """

    @property
    def capabilities(self) -> ServerCapabilities:
        """What servers of this kind can do."""

    def launch(
        self,
        model: str,
        *,
        layout: Layout,
        index: int,
        host: str,
        port: int,
        dtype: str = "",
        model_spec: str = "",
        frozen: bool = False,
    ) -> ServerLaunch:
        """The command that starts a server.

        Args:
            model: path or hub id. A folder may have ``config.json`` alone: the weights are published later.
            layout: ``d`` servers.
            index: number of the server.
            host: address to listen on.
            port: port to listen on.
            dtype: the trainer's compute dtype; empty if unknown.
            model_spec: name of the trainer's ``ModelSpec``, for servers that use Archon's models; empty if unknown.
            frozen: serve the weights of ``model``, whatever model the options of the kind name, and never others.
        """

    def ready(self, address: str, *, timeout: float) -> ServerRecord | None:
        """The record of the server at an address; ``None`` while it does not accept requests. Does not wait for it."""

    async def generate(
        self, server: ServerRecord, request: GenerationRequest, *, request_id: str, timeout: float
    ) -> list[Completion]:
        """The completions of one request. An aborted one has the stop reason ``abort`` and the tokens that it got."""

    async def score(self, server: ServerRecord, request: ScoringRequest, *, timeout: float) -> Scores:
        """Log-probabilities of given tokens. Only servers with the capability ``scores`` have it."""

    def describe_model(self, server: ServerRecord, *, timeout: float) -> ServedModelInfo:
        """What the server knows about its model. Only servers with the capability ``scores`` need it."""

    def pause(self, server: ServerRecord, mode: PauseMode, *, timeout: float) -> None:
        """Stop generation."""

    def resume(self, server: ServerRecord, *, timeout: float) -> None:
        """Continue generation."""

    def abort(self, server: ServerRecord, request_ids: Sequence[str] | None, *, timeout: float) -> None:
        """End requests; ``None`` ends all."""

    def state(self, server: ServerRecord, *, timeout: float) -> ServerState:
        """The server's state."""

    def is_generating(self, server: ServerRecord, *, timeout: float) -> bool:
        """Whether the server generates tokens now, for any request.

        The pool asks after a probe without an answer: a busy server may queue the probe behind other requests, while a
        hung engine generates nothing. Servers that do not report it return false.
        """

    def begin_update(self, server: ServerRecord, plan: UpdatePlan, *, timeout: float) -> None:
        """Start an update. Drops what an earlier unfinished one received."""

    def receive_bucket(self, server: ServerRecord, notice: BucketNotice, *, timeout: float) -> Receipt:
        """Let the server receive one bucket. Returns when it has copied the bytes."""

    def verify_update(self, server: ServerRecord, manifest: WeightManifest, *, timeout: float) -> Receipt:
        """The receipt for all tensors of an update. ``manifest`` has all checksums."""

    def commit_update(self, server: ServerRecord, version: int, *, timeout: float) -> None:
        """Switch to the received weights. A server that loads in place is paused, loaded and resumed."""

    def abort_update(self, server: ServerRecord, version: int, *, timeout: float) -> None:
        """Drop what was received of an update. Has no effect on another version, or after its commit."""


class ServerDriverFactory(Protocol):
    """``target`` of a ``ServerDriverSpec``.

    ``config`` is the section ``rollout``; ``options`` the section named like the kind, such as ``vllm``; ``token`` the
    run's secret, which servers require in every request.
    """

    def __call__(self, config: Any, *, options: Any = None, token: str = "") -> ServerDriver: ...


class RolloutClient(Protocol):
    """Generates completions on whatever servers there are; the interface of collectors and workflows."""

    @property
    def version(self) -> int:
        """The last version that was committed on a server."""

    async def generate(self, request: GenerationRequest, *, group: str = "") -> list[Completion]:
        """The completions of one request.

        Args:
            request: the request.
            group: requests of one group share a prefix and go to the same server while it is available.

        Raises:
            ServerError: no server completed it within ``rollout.request_timeout`` and ``request_retries``.
        """


@dataclass(frozen=True)
class ClientRecipe:
    """How another process builds a ``RemoteClient`` of an engine's servers.

    Attributes:
        target: ``module:attribute`` of a ``RemoteClientFactory``.
        data: its argument, of JSON's types. Contains the run's secret.
    """

    target: str
    data: Mapping[str, Any]


class RemoteClient(RolloutClient, Protocol):
    """A ``RolloutClient`` in a process beside the trainer, which knows only the servers that the trainer names."""

    def update(self, servers: Sequence[ServerRecord], version: int, answering: Sequence[str] = ()) -> None:
        """Take over the servers that may get requests, and the version of their weights.

        Args:
            servers: may get requests.
            version: of their weights.
            answering: incarnations of further servers, which may answer the requests that they have.
        """

    def switching(self) -> None:
        """The servers switch to new weights until the next ``update``; what they answer meanwhile waits for it, because
        a server may label tokens with a version that other weights made."""

    def failures(self) -> Mapping[str, str]:
        """Incarnation -> error, of the servers that have failed since the last call."""

    def idle_share(self) -> float:
        """The share of the servers' time, since the last call, in which they had no request of this client: 0 to 1."""


class RemoteClientFactory(Protocol):
    """``target`` of a ``ClientRecipe``."""

    def __call__(self, data: Mapping[str, Any]) -> RemoteClient: ...


class ServingEngine(InferenceEngine, Protocol):
    """An inference engine whose servers other processes can use while the trainer trains. These methods are not
    collective; the first rank calls them."""

    def client_recipe(self) -> ClientRecipe:
        """How another process builds a client."""

    def on_switch(self, call: Callable[[], None]) -> None:
        """Call ``call`` before servers switch to new weights, in every publication."""

    def servers(self) -> Sequence[ServerRecord]:
        """The servers that may get requests now."""

    def answering(self) -> Sequence[str]:
        """Incarnations of the servers that may answer the requests that they have, whether or not they get others."""

    def report_failures(self, failures: Mapping[str, str]) -> None:
        """Take note of requests that failed elsewhere: incarnation -> error. They count like failed probes."""

    def needs_publication(self) -> bool:
        """Whether no server is in service, so that only a publication can bring in others."""
