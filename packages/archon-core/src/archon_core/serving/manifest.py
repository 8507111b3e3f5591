"""The manifest of published weights: every tensor with dtype, shape and checksum; and its division into buckets.

The publisher sends the manifest without checksums at first, because it gathers tensors bucket by bucket. Each notice
of a bucket adds the checksums of its tensors. A server computes the checksums of what it holds itself; the publisher
compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from archon_core.errors import ServerError
from archon_core.serving.wire import fields_of, to_data

ITEM_SIZES: Mapping[str, int] = {
    "float64": 8,
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "int64": 8,
    "int32": 4,
    "uint8": 1,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}
"""Names of dtypes, as in torch without the prefix, and the bytes of an element."""

Encoding = Literal["full", "kept"]
"""How a tensor is sent: ``full`` sends its elements; ``kept`` sends nothing, and the receiver takes the tensor from the
version ``base_version``. Delta updates will add a third."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor under its Hugging Face name.

    Attributes:
        name: the name.
        dtype: dtype of its elements, a key of ``ITEM_SIZES``.
        shape: shape of the whole tensor.
        checksum: ``checksum`` of its contiguous bytes; empty until the publisher has gathered it.
        encoding: how it is sent.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    checksum: str = ""
    encoding: Encoding = "full"

    @property
    def n_bytes(self) -> int:
        """Size of the whole tensor."""
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]

    @classmethod
    def from_data(cls, data: Any) -> TensorEntry:
        """Read a received entry. Raises ServerError if it is malformed."""
        found = fields_of(cls, data, name=str, dtype=str, shape=(list, tuple), checksum=str, encoding=str)
        shape = tuple(found["shape"])
        if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in shape):
            raise ServerError(f"tensor {found['name']!r}: found shape {shape}; allowed are sizes of 0 or more")
        if found["dtype"] not in ITEM_SIZES:
            raise ServerError(
                f"tensor {found['name']!r}: found dtype {found['dtype']!r}; allowed are {', '.join(ITEM_SIZES)}"
            )
        if found.get("encoding", "full") not in get_args(Encoding):
            raise ServerError(
                f"tensor {found['name']!r}: found encoding {found['encoding']!r}; this version of archon-core allows "
                f"{', '.join(get_args(Encoding))}; upgrade the server's archon-core"
            )
        return cls(**{**found, "shape": shape})


@dataclass(frozen=True)
class WeightManifest:
    """All tensors of one version, in the order in which they are sent.

    Attributes:
        version: version of the weights.
        tensors: every tensor of the model, including unchanged tensors that are not sent again.
        base_version: version that holds the tensors with encoding ``kept``; ``None`` if every tensor is sent. A server
            with other weights must refuse the update.
    """

    version: int
    tensors: tuple[TensorEntry, ...]
    base_version: int | None = None

    @property
    def n_bytes(self) -> int:
        """Size of all tensors."""
        return sum(entry.n_bytes for entry in self.tensors)

    def with_checksums(self, checksums: Mapping[str, str]) -> WeightManifest:
        """The manifest with these checksums filled in."""
        return replace(
            self,
            tensors=tuple(replace(entry, checksum=checksums.get(entry.name, entry.checksum)) for entry in self.tensors),
        )

    def as_data(self) -> dict[str, Any]:
        """The manifest as a JSON object."""
        return to_data(self)

    @classmethod
    def from_data(cls, data: Any) -> WeightManifest:
        """Read a received manifest. Raises ServerError if it is malformed or names a tensor twice."""
        found = fields_of(cls, data, version=int, tensors=(list, tuple), base_version=(int, type(None)))
        tensors = tuple(TensorEntry.from_data(entry) for entry in found["tensors"])
        if len({entry.name for entry in tensors}) < len(tensors):
            names = [entry.name for entry in tensors]
            twice = next(name for name in names if names.count(name) > 1)
            raise ServerError(f"weight manifest: found {twice!r} twice; a tensor is published once")
        return cls(**{**found, "tensors": tensors})


def plan_buckets(entries: Sequence[TensorEntry], max_bytes: int) -> list[tuple[TensorEntry, ...]]:
    """Divide tensors, in order, into buckets of at most ``max_bytes``. A larger tensor is a bucket alone."""
    assert max_bytes > 0, f"buckets of {max_bytes} bytes"
    buckets: list[tuple[TensorEntry, ...]] = []
    current: list[TensorEntry] = []
    used = 0
    for entry in entries:
        if current and used + padded(entry.n_bytes) > max_bytes:
            buckets.append(tuple(current))
            current, used = [], 0
        current.append(entry)
        used += padded(entry.n_bytes)
    return [*buckets, tuple(current)] if current else buckets


ALIGNMENT = 64
"""Tensors in a bucket begin at multiples of this many bytes, so that views of any dtype, and whole cache lines, fit."""


def padded(n_bytes: int) -> int:
    """``n_bytes`` rounded up to the alignment of tensors in a bucket."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def offsets_of(entries: Iterable[TensorEntry]) -> tuple[int, ...]:
    """Offset of each tensor in its bucket."""
    offsets = []
    end = 0
    for entry in entries:
        offsets.append(end)
        end += padded(entry.n_bytes)
    return tuple(offsets)


def size_of_bucket(entries: Iterable[TensorEntry]) -> int:
    """Bytes that a bucket occupies."""
    return sum(padded(entry.n_bytes) for entry in entries)
