"""Transports of weights from trainers to inference servers: the sending end, the receiving end, and the store.

Formats and messages are in ``archon_core.serving``; ``docs/weights.md`` shows how a publication uses them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from archon_core.contracts.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

    from archon_core.contracts.serving import ServerDriver
    from archon_core.serving.manifest import WeightManifest
    from archon_core.serving.record import ServerRecord
    from archon_core.serving.update import BucketNotice, Receipt, UpdatePlan


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


def stores_whole_versions(transport: WeightTransport) -> bool:
    """Whether a transport stores whole versions, so that it also gets tensors that servers keep. Default: false."""
    return getattr(transport, "stores_whole_versions", False)


@dataclass(frozen=True)
class TransportContext:
    """What a transport is made from.

    Attributes:
        driver: calls the servers.
        run: id of the publisher, part of names in shared memory and on disk, and of update plans.
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
