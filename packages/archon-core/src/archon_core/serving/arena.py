"""The shared-memory arena of a run: a header page and slots that the trainer fills and servers on its host read.

Layout, little-endian::

    0     magic, format, slot count, slot size, owner's pid           one page
    256   per slot, 64 bytes each: generation, version, bucket, size
    4096  slot 0, slot 1, ...                                         page-aligned

A slot's generation is a sequence lock: odd while the trainer writes, even when the slot is stable. A notice names
the even generation that it announces. A reader checks it before and after it uses the bytes, so bytes of a slot
that was reused meanwhile never count, however late the reader wakes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from archon_core.errors import ServerError
from archon_core.serving.wire import fields_of, to_data

MAGIC = b"ARCHONW1"
PAGE_BYTES = 4096
SLOTS = 2
"""One slot is read while the other is written."""

_HEADER = struct.Struct("<8sIIQQ")
_SLOT = struct.Struct("<QqQQ")
_SLOTS_AT = 256
_SLOT_BYTES = 64
_GENERATION = struct.Struct("<Q")


@dataclass(frozen=True)
class ArenaHeader:
    """The first page.

    Attributes:
        slot_bytes: size of a slot, a multiple of the page size.
        n_slots: number of slots.
        owner: process id of the trainer, for display. Liveness is decided by its lock on the file.
    """

    slot_bytes: int
    n_slots: int = SLOTS
    owner: int = 0

    @classmethod
    def for_buckets(cls, largest: int, *, owner: int = 0) -> ArenaHeader:
        """The header of an arena whose slots hold buckets of up to ``largest`` bytes."""
        return cls(max(1, -(-largest // PAGE_BYTES)) * PAGE_BYTES, owner=owner)

    @property
    def n_bytes(self) -> int:
        """Size of the whole arena."""
        return PAGE_BYTES + self.n_slots * self.slot_bytes

    def start_of(self, slot: int) -> int:
        """Offset of a slot in the arena."""
        assert 0 <= slot < self.n_slots, f"slot {slot} of {self.n_slots}"
        return PAGE_BYTES + slot * self.slot_bytes

    def write(self, memory: Any) -> None:
        """Write the header, with all slots unused."""
        memory[:PAGE_BYTES] = bytes(PAGE_BYTES)
        _HEADER.pack_into(memory, 0, MAGIC, 1, self.n_slots, self.slot_bytes, self.owner)

    @classmethod
    def read(cls, memory: Any, *, name: str) -> ArenaHeader:
        """Read the header of the arena ``name``.

        Raises:
            ServerError: the memory is not an arena, or is smaller than the header says.
        """
        size = len(memory)
        if size >= PAGE_BYTES:
            magic, form, n_slots, slot_bytes, owner = _HEADER.unpack_from(memory, 0)
            header = cls(slot_bytes, n_slots, owner)
            fits_page = _SLOTS_AT + n_slots * _SLOT_BYTES <= PAGE_BYTES
            if magic == MAGIC and form == 1 and fits_page and header.n_bytes == size:
                return header
        raise ServerError(
            f"shared memory {name!r}: found no arena of this format in {size} bytes; trainer and server need the same "
            "version of archon-core"
        )


@dataclass(frozen=True)
class SlotState:
    """The header of one slot.

    Attributes:
        generation: the sequence lock; odd while the slot is written.
        version: version of the weights in it.
        bucket: number of the bucket.
        n_bytes: bytes in use.
    """

    generation: int
    version: int = 0
    bucket: int = 0
    n_bytes: int = 0


def read_slot(memory: Any, slot: int) -> SlotState:
    """The header of a slot."""
    return SlotState(*_SLOT.unpack_from(memory, _SLOTS_AT + slot * _SLOT_BYTES))


def begin_writing(memory: Any, slot: int) -> int:
    """Mark a slot as being written. Returns the even generation that it will have when it is stable."""
    at = _SLOTS_AT + slot * _SLOT_BYTES
    (generation,) = _GENERATION.unpack_from(memory, at)
    _GENERATION.pack_into(memory, at, generation | 1)
    return (generation | 1) + 1


def end_writing(memory: Any, slot: int, state: SlotState) -> None:
    """Publish the content of a slot; ``state.generation`` is the result of ``begin_writing``."""
    at = _SLOTS_AT + slot * _SLOT_BYTES
    # The generation comes last: a reader that sees it sees the rest. Stores of one thread keep their order on x86, and
    # on every processor the notice that announces the slot is sent after them through the kernel.
    _SLOT.pack_into(memory, at, state.generation - 1, state.version, state.bucket, state.n_bytes)
    _GENERATION.pack_into(memory, at, state.generation)


@dataclass(frozen=True)
class SlotPlace:
    """Where the bytes of a bucket are; ``place`` of a ``BucketNotice``.

    Attributes:
        arena: name of the arena.
        slot: number of the slot.
        generation: the slot's generation while it holds the bucket.
    """

    arena: str
    slot: int
    generation: int

    def as_data(self) -> dict[str, Any]:
        """The place as a JSON object."""
        return to_data(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> SlotPlace:
        """Read a received place. Raises ServerError if it is malformed."""
        return cls(**fields_of(cls, data, arena=str, slot=int, generation=int))


def check_slot(memory: Any, place: SlotPlace, *, version: int, bucket: int, n_bytes: int) -> None:
    """Check that a slot holds the announced bucket, now. Call it before and after using the bytes.

    Raises:
        ServerError: the slot holds something else, or is being written.
    """
    state = read_slot(memory, place.slot)
    expected = SlotState(place.generation, version, bucket, n_bytes)
    if state != expected or state.generation % 2:
        raise ServerError(
            f"slot {place.slot} of {place.arena!r}: found generation {state.generation} with bucket {state.bucket} of "
            f"version {state.version}, {state.n_bytes} bytes; the notice announced generation {place.generation} with "
            f"bucket {bucket} of version {version}, {n_bytes} bytes. The trainer has reused the slot; this server is "
            "late and must not use these weights"
        )
