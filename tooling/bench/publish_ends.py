"""Both ends of the publications that ``publish.py`` measures: a receiving process, and an engine without gathering."""

from __future__ import annotations

import subprocess
import sys
import threading
from multiprocessing.connection import Client, Listener
from typing import Any

import torch

from archon_core.contracts.weight_transport import WeightBucket
from archon_core.errors import ServerError
from archon_core.ranks.ranks import DataRanks
from archon_core.receiving.checksum import bytes_of, checksum_of
from archon_core.receiving.elastic_group import RECEIVER, join_group
from archon_core.receiving.memory_store import MemoryStore
from archon_core.receiving.updates import WeightUpdates
from archon_core.serving.manifest import TensorEntry, WeightManifest, offsets_of, plan_buckets, size_of_bucket
from archon_core.serving.record import ServerCapabilities, ServerRecord, ServerState
from archon_core.serving.update import BucketNotice, Receipt, UpdatePlan, notice_of
from archon_rollout.plugin import archon_weight_transports

SPECS = {spec.name: spec for spec in archon_weight_transports()}
RECORD = ServerRecord("127.0.0.1:1", "bench", "bench")


class BenchStore(MemoryStore):
    """A store that keeps the weights, or leaves that out."""

    keeps = True

    @property
    def reads_back(self) -> bool:
        return self.keeps

    def put(self, name: str, values: torch.Tensor) -> None:
        if self.keeps:
            super().put(name, values)


def run_receiver(pipe: Any) -> None:
    """The receiving process: answers calls until the pipe closes."""
    torch.set_num_threads(1)
    store = BenchStore()
    updates = WeightUpdates(
        store,
        incarnation=RECORD.incarnation,
        version=0,
        receiver_of=lambda name: SPECS[name].load_part("receiver")(timeout=60.0),
    )
    group, buffer = None, torch.empty(0, dtype=torch.uint8)
    while True:
        try:
            verb, value = pipe.recv()
        except EOFError:
            return
        answer: Any = None
        try:
            if verb == "join":
                group = join_group(*value, RECEIVER, timeout=60.0)
            elif verb == "raw":
                if buffer.numel() < value:
                    buffer = torch.zeros(value, dtype=torch.uint8)
                group.recv([buffer[:value]], 0, 0).wait()
            elif verb == "keep":
                store.keeps = value
            elif verb == "state":
                answer = ServerState(RECORD.incarnation, updates.version, False, updates.prepared, updates.updating)
            else:
                answer = getattr(updates, verb)(value)
        except ServerError as error:
            answer = error
        pipe.send(answer)


class DirectDriver:
    """The verbs of an update; implements ``contracts.serving.ServerDriver`` as far as publication uses it."""

    capabilities = ServerCapabilities((*SPECS,), ("keep",), staged=True, checksums=True)

    def call(self, verb: str, value: Any = None) -> Any:
        raise NotImplementedError

    def state(self, server: ServerRecord, *, timeout: float) -> ServerState:
        return self.call("state")

    def begin_update(self, server: ServerRecord, plan: UpdatePlan, *, timeout: float) -> None:
        self.call("begin", plan)

    def receive_bucket(self, server: ServerRecord, notice: BucketNotice, *, timeout: float) -> Receipt:
        return self.call("receive", notice)

    def verify_update(self, server: ServerRecord, manifest: WeightManifest, *, timeout: float) -> Receipt:
        return self.call("verify", manifest)

    def commit_update(self, server: ServerRecord, version: int, *, timeout: float) -> None:
        self.call("commit", version)

    def abort_update(self, server: ServerRecord, version: int, *, timeout: float) -> None:
        self.call("abort", version)


class PipeDriver(DirectDriver):
    """Starts the receiving process, and calls it."""

    def __init__(self) -> None:
        with Listener(family="AF_UNIX") as listener:
            # A process of multiprocessing could not be started by the ranks of a world, which are daemons.
            self._process = subprocess.Popen([sys.executable, __file__, listener.address])
            self._pipe = listener.accept()
        self._lock = threading.Lock()

    def call(self, verb: str, value: Any = None) -> Any:
        with self._lock:
            self._pipe.send((verb, value))
            answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.wait()


class GatheredWeights:
    """An engine whose weights are whole tensors already, so that transports alone are measured."""

    data_ranks = DataRanks()

    def __init__(self, n_bytes: int, max_bytes: int) -> None:
        self.version = 0
        self.manifest = WeightManifest(
            0, tuple(TensorEntry(f"layers.{i}.weight", "float32", (1024, 1024)) for i in range(n_bytes // 2**22))
        )
        self.buckets = []
        for index, entries in enumerate(plan_buckets(self.manifest.tensors, max_bytes)):
            content = torch.rand(size_of_bucket(entries) // 4).view(torch.uint8)
            self.buckets.append((WeightBucket(index, _views(content, entries), content), entries))

    def weight_manifest(self, dtype: str | None = None) -> WeightManifest:
        return WeightManifest(self.version, self.manifest.tensors)

    def weight_buckets(self, max_bytes: int, dtype: str | None = None, memory: Any = None) -> Any:
        for bucket, entries in self.buckets:
            yield bucket if memory is None else self.copied(bucket, entries, memory)

    def copied(self, bucket: WeightBucket, entries: tuple[TensorEntry, ...], memory: Any) -> WeightBucket:
        """A bucket in the memory of a transport, assembled tensor by tensor as an engine does."""
        content = memory(bucket.index, bucket.content.numel())[: bucket.content.numel()]
        views = _views(content, entries)
        for name, view in views.items():
            view.copy_(bucket.tensors[name])
        return WeightBucket(bucket.index, views, content)

    def notices(self) -> list[BucketNotice]:
        """Complete notices, so that checksums are not part of a measurement."""
        return [
            notice_of(
                self.version,
                bucket.index,
                tuple(
                    TensorEntry(e.name, e.dtype, e.shape, checksum_of(bytes_of(bucket.tensors[e.name])))
                    for e in entries
                ),
            )
            for bucket, entries in self.buckets
        ]


def _views(content: torch.Tensor, entries: tuple[TensorEntry, ...]) -> dict[str, torch.Tensor]:
    return {
        entry.name: content[offset : offset + entry.n_bytes].view(torch.float32).view(entry.shape)
        for entry, offset in zip(entries, offsets_of(entries), strict=True)
    }


if __name__ == "__main__":
    run_receiver(Client(sys.argv[1], family="AF_UNIX"))
