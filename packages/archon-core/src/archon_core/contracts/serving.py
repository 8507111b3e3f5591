"""Inference servers: drivers, weight transports, registries of servers, and the client that workflows use.

The messages and formats are in ``archon_core.serving``. Blocking methods take a time limit and never wait longer; the
trainer's rank 0 calls them from one thread per server. ``generate`` is a coroutine, because a collector has hundreds of
requests in progress.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from archon_core.config.rules import option, path_or_id
from archon_core.contracts.rollout import InferenceEngine
from archon_core.contracts.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

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
        check: target of ``check(config, *, layout, option) -> ServerCheck``, which examines a run's whole
            configuration. ``layout``, of this kind, is the ``backend`` of its section ``option``: ``rollout``, or
            ``teacher.rollout`` for servers that only score. It must not import torch: dry runs call it.
    """

    kind: ClassVar[str] = "server_driver"
    hook: ClassVar[str] = "archon_server_drivers"

    letters: str = "dt"
    transports: tuple[str, ...] = ("disk",)
    one_rank: tuple[str, ...] = ()
    check: str = ""

    def transports_for(self, layout: Layout) -> tuple[str, ...]:
        """The transports that reach the servers of ``layout``, the preferred one first."""
        ranks = layout.dims["t"] * layout.dims["p"]
        return tuple(name for name in self.transports if ranks == 1 or name not in self.one_rank)


@dataclass(frozen=True)
class ServerCheck:
    """What stands in the way of servers that a run would start.

    Attributes:
        problems: errors in the configuration, one sentence each.
        program: the server's program, such as ``vllm``, if this machine lacks it; empty otherwise.
        missing: what is the matter with it, and how to install it: ``is not installed ...``.
    """

    problems: tuple[str, ...] = ()
    program: str = ""
    missing: str = ""


@dataclass(frozen=True)
class WeightTransportSpec(Spec):
    """A transport of weights from trainers to inference servers. ``target`` names a ``WeightTransportFactory``.

    Attributes:
        receiver: target of a ``WeightReceiverFactory``, the receiving end for servers of this repository. Empty if only
            foreign servers receive.
        one_host: whether trainer and servers must run on the same host.
        device: device type that sender and receiver need; empty for any.
    """

    kind: ClassVar[str] = "weight_transport"
    hook: ClassVar[str] = "archon_weight_transports"

    receiver: str = ""
    one_host: bool = False
    device: str = ""


@dataclass(frozen=True)
class ServerRegistrySpec(Spec):
    """A registry of servers. ``target`` names a ``ServerRegistryFactory``.

    Attributes:
        entries: where entries come from: servers that announce themselves (``announced``), ``rollout.addresses``
            (``addresses``), or the registry's own process alone (``own``).
    """

    kind: ClassVar[str] = "server_registry"
    hook: ClassVar[str] = "archon_registries"

    entries: Literal["announced", "addresses", "own"] = "announced"


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


class BucketMemory(Protocol):
    """Memory of a transport in which an engine assembles buckets, so that a tensor is copied once: from its shards to
    where servers read it."""

    def __call__(self, index: int, n_bytes: int) -> Tensor:
        """Memory for bucket ``index``, uint8 [n_bytes or more], on any device. The engine writes to it at once, and
        overwrites the bucket before the last one."""


@dataclass(frozen=True)
class WeightBucket:
    """Whole Hugging Face tensors on the publishing rank.

    Attributes:
        index: number of the bucket, from 0.
        tensors: name -> contiguous tensor in the compute dtype; empty on other ranks.
        content: all bytes of the bucket, uint8, if the tensors are views of it at ``offsets_of`` all entries; a
            transport then sends from it without another copy.
    """

    index: int
    tensors: Mapping[str, Tensor]
    content: Tensor | None = None


@dataclass(frozen=True)
class Outcome:
    """The result of one call to one server.

    Attributes:
        receipt: the server's receipt; ``None`` if it failed.
        error: why it failed; empty if it did not.
        seconds: duration of the call.
        uncertain: whether the server may still execute the call.
    """

    receipt: Receipt | None
    error: str = ""
    seconds: float = 0.0
    uncertain: bool = False


class PendingBucket(Protocol):
    """A bucket on its way, as ``WeightTransport.send`` returns it. Only its transport looks inside."""


class WeightTransport(Protocol):
    """Moves weights from the publishing rank to servers, one version after the other.

    The order of calls is ``prepare``, then ``send`` and ``wait`` per bucket with at most one pending bucket, then
    ``finish``, and ``commit`` or ``abort``. No method raises for a failing server: outcomes say which servers failed,
    and these receive nothing more of this version.
    """

    def prepare(self, version: int, manifest: WeightManifest, servers: Sequence[ServerRecord]) -> Mapping[str, Outcome]:
        """Start a version. Returns the outcome per incarnation."""

    def memory(self) -> BucketMemory | None:
        """Where the engine should assemble the buckets of the prepared version; ``None`` for its own memory. A bucket
        from elsewhere is valid too, and costs a copy."""

    def send(self, bucket: WeightBucket, notice: BucketNotice) -> PendingBucket:
        """Start sending a bucket. Its tensors may be overwritten once ``wait`` has returned."""

    def wait(self, pending: PendingBucket) -> Mapping[str, Outcome]:
        """Wait until every server has received the bucket or failed."""

    def finish(self, manifest: WeightManifest) -> None:
        """All buckets were received. Called before servers verify; ``manifest`` has all checksums."""

    def commit(self, version: int) -> None:
        """Forget a version that servers have committed."""

    def abort(self) -> None:
        """Drop an unfinished version. Idempotent."""

    def close(self) -> None:
        """Free all resources, such as shared memory. Idempotent."""


@dataclass(frozen=True)
class TransportContext:
    """What a transport is made from.

    Attributes:
        driver: calls the servers.
        run: id of the run, part of names in shared memory and on disk.
        folder: a folder that trainer and servers share, under ``cluster.fileroot``; ``None`` without one.
        timeout: time limit of a call to a server, in seconds.
        bucket_bytes: largest size of a bucket, except for a single larger tensor.
        companions: the files of a Hugging Face folder beside the weights, such as ``config.json``; ``None`` without.
        options: the transport's other options.
    """

    driver: ServerDriver
    run: str
    folder: Path | None = None
    timeout: float = 60.0
    bucket_bytes: int = 2**28
    companions: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class WeightTransportFactory(Protocol):
    """``target`` of a ``WeightTransportSpec``."""

    def __call__(self, context: TransportContext) -> WeightTransport: ...


class WeightStore(Protocol):
    """Where a server keeps the weights that it receives, beside those in use.

    ``reads_back`` says whether ``stored`` returns tensors. Otherwise checksums are those of the bytes that arrived, and
    say nothing about what became of them.
    """

    reads_back: bool

    def put(self, name: str, values: Tensor) -> None:
        """Copy a whole Hugging Face tensor. ``values`` is valid during the call only and must not be written."""

    def keep(self, name: str) -> None:
        """Take a tensor over from the weights in use. Raises ServerError if they lack it."""

    def stored(self, name: str) -> Tensor | None:
        """A received tensor as it will be used, in the form in which it was put, on the CPU; ``None`` if it is not
        there."""

    def commit(self, version: int) -> None:
        """Use the received weights from now on."""

    def drop(self) -> None:
        """Forget the received weights. Idempotent."""


class WeightReceiver(Protocol):
    """The receiving end of a transport, inside a server. One update after the other, and calls from one thread at a
    time."""

    def begin(self, plan: UpdatePlan) -> None:
        """Start an update."""

    def receive(self, notice: BucketNotice, store: WeightStore) -> Mapping[str, str]:
        """Receive a bucket into ``store``. Returns checksums of the bytes that were received. Raises TransferError if
        they did not all arrive and the bucket may be received again."""

    def end(self) -> None:
        """Free what the update used, whether it was committed or aborted. Idempotent. Memory may stay for the next
        update."""


class WeightReceiverFactory(Protocol):
    """``receiver`` of a ``WeightTransportSpec``. ``timeout`` limits every wait for the trainer, in seconds."""

    def __call__(self, *, timeout: float) -> WeightReceiver: ...


@dataclass(frozen=True)
class RegistryChange:
    """One change in a registry.

    Attributes:
        id: of the entry.
        record: the new record; ``None`` if the entry was withdrawn or expired.
    """

    id: str
    record: ServerRecord | None


class Announcement(Protocol):
    """An entry in a registry, held by the server that announced it."""

    def refresh(self, record: ServerRecord | None = None) -> None:
        """Renew the time to live, optionally with a new record. Raises ServerError if the registry is unreachable."""

    def withdraw(self) -> None:
        """Remove the entry. Idempotent."""


class ServerRegistry(Protocol):
    """Knows which servers there are. Every method raises ServerError if the registry cannot be read."""

    def announce(self, id: str, record: ServerRecord, ttl: float) -> Announcement:
        """Add an entry that expires ``ttl`` seconds after its last refresh."""

    def list(self) -> Mapping[str, ServerRecord]:
        """All entries that have not expired."""

    def changes(self, since: int) -> tuple[int, Sequence[RegistryChange]]:
        """The changes after a cursor, and the next cursor. Cursor 0 gives all entries."""

    def close(self) -> None:
        """Free the connection. Entries of this process stay until they expire. Idempotent."""


@dataclass
class NameResolveConfig:
    """The registry of inference servers that the run does not start itself.

    Attributes:
        type: name of the registry: ``folder``, ``etcd``, ``static``, ``dns`` or ``memory``. AReaL's ``nfs`` and
            ``etcd3`` are other names of ``folder`` and ``etcd``. See docs/rollout.md.
        nfs_record_root: root of the ``folder`` registry, on a file system that all hosts share; null for
            ``cluster.fileroot``.
        etcd3_addr: ``host:port`` of etcd.
    """

    type: str = "folder"
    nfs_record_root: str | None = option(None, path_or_id)
    etcd3_addr: str = "localhost:2379"


class ServerRegistryFactory(Protocol):
    """``target`` of a ``ServerRegistrySpec``.

    ``config`` is the section ``cluster.name_resolve``, with ``nfs_record_root`` filled in; ``run`` the run's name,
    ``<experiment_name>/<trial_name>``; ``addresses`` is ``rollout.addresses``. Creating a registry connects to nothing.
    """

    def __call__(self, config: Any, *, run: str, addresses: Sequence[str] = ()) -> ServerRegistry: ...


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

    def update(self, servers: Sequence[ServerRecord], version: int) -> None:
        """Take over the servers in service, and the version of their weights."""

    def switching(self) -> None:
        """The servers switch to new weights until the next ``update``; what they answer meanwhile waits for it, because
        a server may label tokens with a version that other weights made."""

    def failures(self) -> Mapping[str, str]:
        """Incarnation -> error, of the servers that have failed since the last call."""


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

    def report_failures(self, failures: Mapping[str, str]) -> None:
        """Take note of requests that failed elsewhere: incarnation -> error. They count like failed probes."""

    def needs_publication(self) -> bool:
        """Whether no server is in service, so that only a publication can bring in others."""
