"""The transport ``shm``: one arena in shared memory per run, for servers on the trainer's host.

Two slots take turns, and their memory stays mapped and warm from version to version: the first touch of a page is six
to seven times slower. The engine assembles each bucket in a slot, so the trainer copies a tensor once, cast on the way,
and holds no bucket beside the two slots. Servers map the arena and copy from there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from archon_core.contracts.weight_transport import BucketMemory, TransportContext, WeightBucket
from archon_core.receiving.shared_memory import view_tensor
from archon_core.serving.arena import SLOTS, ArenaHeader, SlotPlace, SlotState, begin_writing, end_writing
from archon_core.serving.arena_file import Arena, create_arena, sweep_arenas
from archon_core.serving.manifest import WeightManifest, plan_buckets, size_of_bucket
from archon_core.serving.update import BucketNotice
from archon_engine.compat import copy_all
from archon_rollout.transports.notifying import NotifyingTransport


class SharedMemoryTransport(NotifyingTransport):
    """Implements ``contracts.weight_transport.WeightTransport``."""

    name = "shm"

    def __init__(self, context: TransportContext) -> None:
        super().__init__(context)
        self._arena: Arena | None = None
        self._slots: list[torch.Tensor] = []
        self._generations = [0] * SLOTS

    def memory(self) -> BucketMemory | None:
        """The slots."""
        return None if self._arena is None else self._open_slot

    def close(self) -> None:
        """Remove the arena."""
        super().close()
        self._close_arena()

    def _setups(self, manifest: WeightManifest) -> Mapping[str, Mapping[str, Any]]:
        buckets = plan_buckets(manifest.tensors, self._context.bucket_bytes)
        header = ArenaHeader.for_buckets(max(map(size_of_bucket, buckets), default=0), owner=os.getpid())
        if self._arena is not None and self._arena.header.slot_bytes < header.slot_bytes:
            self._close_arena()
        if self._arena is None:
            sweep_arenas()
            self._arena = create_arena(header, run=self._context.run)
            slot_bytes = self._arena.header.slot_bytes
            self._slots = [
                torch.frombuffer(self._arena.slot(slot, slot_bytes), dtype=torch.uint8) for slot in range(SLOTS)
            ]
        return {server.incarnation: {"arena": self._arena.name} for server in self._servers}

    def _place(self, bucket: WeightBucket, notice: BucketNotice) -> Mapping[str, Any]:
        assert self._arena is not None, "prepare() comes first"
        slot = notice.index % SLOTS
        if bucket.content is None or bucket.content.data_ptr() != self._slots[slot].data_ptr():
            content = self._open_slot(notice.index, notice.n_bytes)
            copy_all(
                [view_tensor(content, entry, offset) for entry, offset in notice.sent],
                [bucket.tensors[entry.name] for entry, _ in notice.sent],
            )
        generation = self._generations[slot]
        end_writing(self._arena.memory, slot, SlotState(generation, notice.version, notice.index, notice.n_bytes))
        return SlotPlace(self._arena.name, slot, generation).as_data()

    def _open_slot(self, index: int, n_bytes: int) -> torch.Tensor:
        """Mark the slot of a bucket as being written; implements ``contracts.weight_transport.BucketMemory``."""
        assert self._arena is not None, "prepare() comes first"
        slot = index % SLOTS
        # The slot is free: at most one bucket is pending, and it is in the other slot. A server that did not answer for
        # the last bucket in this slot finds another generation when it wakes.
        self._generations[slot] = begin_writing(self._arena.memory, slot)
        return self._slots[slot]

    def _close_arena(self) -> None:
        if self._arena is not None:
            self._slots = []
            self._arena.close()
            self._arena = None
