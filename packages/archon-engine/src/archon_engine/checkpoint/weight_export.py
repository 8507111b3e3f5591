"""Publication of weights: whole Hugging Face tensors, gathered in buckets on the rank that sends them to servers.

Rules and gathering are those of saving. Two pieces of memory take turns, so a bucket stays valid while the next one is
gathered, and the publishing rank never holds more than two buckets beside its shards. A transport may own the memory,
such as slots that servers map: then nobody copies a bucket again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from archon_core.contracts.weight_transport import BucketMemory, WeightBucket
from archon_core.models.weight_map import ResolvedMap
from archon_core.serving.manifest import (
    TensorEntry,
    WeightManifest,
    offsets_of,
    plan_buckets,
    size_of_bucket,
)
from archon_engine.models.weight_conversion import BoxCopier, assemble_hf, copy_from, send_shards, stored_dtype


class BucketBuffers:
    """Two buffers on the host; implements ``contracts.weight_transport.BucketMemory``. They stay for the next
    publication, because the first touch of new memory is slow."""

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []

    def __call__(self, index: int, n_bytes: int) -> Tensor:
        """The buffer of a bucket. Grown at the start of a version only, while no bucket is in use."""
        if not self._buffers or self._buffers[0].numel() < n_bytes:
            assert index == 0, f"bucket {index} of {n_bytes} bytes is larger than the first was announced"
            self._buffers = []  # otherwise old and new ones would be in memory together
            self._buffers = [torch.empty(n_bytes, dtype=torch.uint8) for _ in range(2)]
        return self._buffers[index % 2]


def manifest_of(weights: ResolvedMap, dtype: torch.dtype, *, version: int) -> WeightManifest:
    """The tensors of a model in the order of saving, without checksums."""
    entries = [
        TensorEntry(hf, str(stored_dtype(hf, weights, dtype)).removeprefix("torch."), shape)
        for hf, shape in weights.hf_shapes.items()
    ]
    return WeightManifest(version, tuple(entries))


@torch.no_grad()
def gather_buckets(
    tensors: Mapping[str, Tensor] | BoxCopier,
    weights: ResolvedMap,
    manifest: WeightManifest,
    max_bytes: int,
    *,
    publishes: bool,
    memory: BucketMemory,
) -> Iterator[WeightBucket]:
    """Yield the tensors of ``manifest`` in buckets. Collective if ``tensors`` gathers.

    Each part of a tensor is copied once, from its shard to the bucket, cast on the way.

    Args:
        tensors: our whole tensors by name, or a function that copies a box of one.
        weights: the map, resolved for the whole model.
        manifest: from ``manifest_of``.
        max_bytes: largest size of a bucket; a larger tensor is a bucket alone.
        publishes: whether this rank assembles tensors; the others only send their shards and get empty buckets.
        memory: where to assemble them; called with the size of the largest bucket.
    """
    copy_ours = tensors if callable(tensors) else copy_from(tensors)
    buckets = plan_buckets(manifest.tensors, max_bytes)
    if not publishes:
        for index, entries in enumerate(buckets):
            for entry in entries:
                send_shards(entry.name, weights, copy_ours)
            yield WeightBucket(index, {})
        return
    largest = max(map(size_of_bucket, buckets), default=0)
    for index, entries in enumerate(buckets):
        buffer = memory(index, largest)
        gathered = {
            entry.name: assemble_hf(
                entry.name,
                weights,
                copy_ours,
                getattr(torch, entry.dtype),
                buffer[offset : offset + entry.n_bytes].view(getattr(torch, entry.dtype)),
            )
            for entry, offset in zip(entries, offsets_of(entries), strict=True)
        }
        yield WeightBucket(index, gathered, buffer[: size_of_bucket(entries)])
