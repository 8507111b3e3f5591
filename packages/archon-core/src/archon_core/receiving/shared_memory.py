"""The receiving end of the transport ``shm``: copies tensors out of the trainer's arena, without other copies."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from archon_core.contracts.weight_transport import WeightStore
from archon_core.errors import ServerError
from archon_core.receiving.checksum import bytes_of, checksum_of
from archon_core.serving.arena import SlotPlace, check_slot
from archon_core.serving.arena_file import Arena, open_arena
from archon_core.serving.manifest import TensorEntry
from archon_core.serving.update import BucketNotice, UpdatePlan


class SharedMemoryReceiver:
    """Implements ``contracts.weight_transport.WeightReceiver``."""

    def __init__(self, *, timeout: float) -> None:
        self._arena: Arena | None = None

    def begin(self, plan: UpdatePlan) -> None:
        """Map the arena."""
        self._arena = open_arena(str(plan.setup.get("arena")))

    def receive(self, notice: BucketNotice, store: WeightStore) -> Mapping[str, str]:
        """Copy the tensors of a slot. The slot is checked before and after, so that reused bytes never count."""
        arena, place = self._arena, SlotPlace.from_data(notice.place)
        if arena is None or place.arena != arena.name or not 0 <= place.slot < arena.header.n_slots:
            raise ServerError(f"bucket {notice.index}: found place {place}; the update began with another arena")
        if notice.n_bytes > arena.header.slot_bytes:
            raise ServerError(f"bucket {notice.index}: found {notice.n_bytes} bytes, more than a slot has")
        described = {"version": notice.version, "bucket": notice.index, "n_bytes": notice.n_bytes}
        check_slot(arena.memory, place, **described)
        content = read_only_bytes(arena.slot(place.slot, notice.n_bytes))
        checksums = {}
        for entry, offset in notice.sent:
            values = view_tensor(content, entry, offset)
            checksums[entry.name] = checksum_of(bytes_of(values))
            store.put(entry.name, values)
        check_slot(arena.memory, place, **described)
        return checksums

    def end(self) -> None:
        """Unmap the arena."""
        if self._arena is not None:
            self._arena.close()
            self._arena = None


def read_only_bytes(memory: memoryview) -> Tensor:
    """A uint8 view of memory, which may be read-only: the caller never writes to it."""
    if not len(memory):
        return torch.empty(0, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(memory, dtype=torch.uint8)


def view_tensor(content: Tensor, entry: TensorEntry, offset: int) -> Tensor:
    """A tensor of a bucket as a view of the bucket's bytes."""
    return content[offset : offset + entry.n_bytes].view(getattr(torch, entry.dtype)).view(entry.shape)
