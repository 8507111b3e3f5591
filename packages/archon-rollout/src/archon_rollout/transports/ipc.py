"""The transport ``ipc``: device memory that servers on the trainer's device open by handles; no copy over the host.

Two buffers take turns, each allocated and exported once per run: every further export would keep the memory alive. The
engine assembles buckets in them, so no byte crosses the host, except parts that other ranks send over gloo. A buffer is
written again only after all servers acknowledged, or failed; what a late server then reads has other checksums than its
notice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from archon_core.contracts.weight_transport import BucketMemory, TransportContext, WeightBucket
from archon_core.receiving.shared_memory import view_tensor
from archon_core.serving.arena import SLOTS
from archon_core.serving.manifest import WeightManifest, plan_buckets, size_of_bucket
from archon_core.serving.update import BucketNotice
from archon_engine.compat import copy_all
from archon_rollout.receiving.device_memory import CudaMemory, DeviceMemory
from archon_rollout.transports.notifying import NotifyingTransport


class IpcTransport(NotifyingTransport):
    """Implements ``contracts.weight_transport.WeightTransport``.

    Raises:
        ServerError: there is no CUDA device.
    """

    name = "ipc"

    def __init__(self, context: TransportContext, memory: DeviceMemory | None = None) -> None:
        self._memory = CudaMemory() if memory is None else memory
        super().__init__(context)
        self._buffers: list[Tensor] = []
        self._handles: list[dict[str, Any]] = []

    def memory(self) -> BucketMemory | None:
        """The buffers."""
        return (lambda index, n_bytes: self._buffers[index % SLOTS]) if self._buffers else None

    def close(self) -> None:
        """Free the buffers."""
        super().close()
        self._buffers, self._handles = [], []

    def _setups(self, manifest: WeightManifest) -> Mapping[str, Mapping[str, Any]]:
        buckets = plan_buckets(manifest.tensors, self._context.bucket_bytes)
        largest = max(map(size_of_bucket, buckets), default=0)
        if not self._buffers or self._buffers[0].numel() < largest:
            self._buffers = [self._memory.allocate(largest) for _ in range(SLOTS)]
            self._handles = [self._memory.export(buffer) for buffer in self._buffers]
        return {server.incarnation: {"handles": self._handles} for server in self._servers}

    def _place(self, bucket: WeightBucket, notice: BucketNotice) -> Mapping[str, Any]:
        number = notice.index % SLOTS
        buffer = self._buffers[number]
        if bucket.content is None or bucket.content.data_ptr() != buffer.data_ptr():
            copy_all(
                [view_tensor(buffer, entry, offset) for entry, offset in notice.sent],
                [bucket.tensors[entry.name] for entry, _ in notice.sent],
            )
        self._memory.synchronise()
        return {"buffer": number}
