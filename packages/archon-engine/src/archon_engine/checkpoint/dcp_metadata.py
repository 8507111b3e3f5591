"""Reads ``.metadata`` of a distributed checkpoint without running code that it names.

torch pickles the description of a checkpoint and reads it with ``pickle.load``, which calls any function that the file
names. Here the pickle may name only the classes of the description, and even these become records without behaviour.
torch's objects are then built from the records, field by field. The format is that of torch 2.11 to 2.13.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from archon_core.errors import DamagedError, WeightsError
from archon_engine.checkpoint.names_in_files import is_plain_name
from archon_engine.compat import storage_info

_METADATA_CLASSES = {
    "Metadata",
    "TensorStorageMetadata",
    "TensorProperties",
    "ChunkStorageMetadata",
    "MetadataIndex",
    "StorageMeta",
    "BytesStorageMetadata",
    "_MEM_FORMAT_ENCODING",
}
_CLASSES = {
    "torch.distributed.checkpoint.metadata": _METADATA_CLASSES,
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
}
_PATHS = {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"}
_PATH_MODULES = {"pathlib", "pathlib._local"}  # the second one on Python 3.13


def read_metadata(file: Path) -> Metadata:
    """Read the description that torch's ``FileSystemWriter`` wrote; it must describe tensors only.

    Raises:
        WeightsError: it names anything that is not part of a description; torch would call that while loading.
        DamagedError: it is unreadable or contradicts itself.
    """
    try:
        with file.open("rb") as opened:
            return _metadata(_MetadataUnpickler(opened).load())
    except _ForbiddenError as error:
        raise WeightsError(
            f"{file}: found {error}, which a checkpoint's description does not need and which could run code; "
            "allowed are the classes of torch.distributed.checkpoint.metadata; nothing was run; do not use this "
            "checkpoint, and find out who changed it"
        ) from None
    except Exception as error:  # what unpickling raises depends on the damage
        raise DamagedError(
            f"{file}: found no readable description of a checkpoint ({error!r}); copy the folder again"
        ) from error


class _ForbiddenError(Exception):
    """The pickle names a global that is not allowed; the message is its dotted name."""


class _Record:
    """A pickled object as data: its constructor's arguments and its state."""

    kind = ""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Call:
    """A function that a pickle may call. An instance, since pickles may set attributes of functions."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("found a state for a function")


class _MetadataUnpickler(pickle.Unpickler):
    """Resolves the names in the description of a checkpoint to records, and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _CLASSES.get(module, ()):
            return type(name, (_Record,), {"kind": name})
        if module == "torch":
            dtype = getattr(torch, name, None) if name.isidentifier() else None
            if isinstance(dtype, torch.dtype):
                return dtype
            if name == "Size":
                return _Call(tuple)
        if (module, name) == ("torch.serialization", "_get_layout"):
            return _Call(str)
        if (module, name) == ("builtins", "getattr"):  # members of enums, as Python 3.11.0 to 3.11.4 pickle them
            return _Call(lambda owner, member: _Record(owner.kind, member))
        if module in _PATH_MODULES and name in _PATHS:
            return _Call(lambda *parts: "/".join(parts))
        raise _ForbiddenError(f"{module}.{name}")


def _metadata(record: Any) -> Metadata:
    state = _state(record, "Metadata")
    tensors = {_text(name): _tensor(entry, name) for name, entry in state["state_dict_metadata"].items()}
    places = {_index(key): _place(place) for key, place in state["storage_data"].items()}
    stored = {MetadataIndex(name, chunk.offsets) for name, tensor in tensors.items() for chunk in tensor.chunks}
    if lost := stored - places.keys():
        raise ValueError(f"{next(iter(lost)).fqn!r} is not stored in any file")
    metadata = Metadata(tensors, {}, places, StorageMeta())
    metadata.version = state.get("version")  # a field since torch 2.9
    return metadata


def _tensor(record: Any, name: str) -> TensorStorageMetadata:
    """Refuses objects that are not tensors, because torch would unpickle their bytes."""
    if isinstance(record, _Record) and record.kind == "BytesStorageMetadata":
        raise _ForbiddenError(f"{name!r} as pickled bytes")
    state = _state(record, "TensorStorageMetadata")
    size = _size(state["size"])
    chunks = [_chunk(chunk) for chunk in state["chunks"]]
    outside = [
        chunk
        for chunk in chunks
        if len(chunk.offsets) != len(size)
        or len(chunk.sizes) != len(size)
        or any(start + extent > whole for start, extent, whole in zip(chunk.offsets, chunk.sizes, size, strict=True))
    ]
    if outside or sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(size):
        raise ValueError(f"the parts of {name!r} do not make up {tuple(size)}")
    return TensorStorageMetadata(_properties(state["properties"]), size, chunks)


def _properties(record: Any) -> TensorProperties:
    """The dtype only; torch has deprecated the other properties."""
    _is_record(record, "TensorProperties")
    dtype = record.state[0]
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"found {dtype!r} in place of a dtype")
    return TensorProperties(dtype=dtype)


def _chunk(record: Any) -> ChunkStorageMetadata:
    state = _state(record, "ChunkStorageMetadata")
    return ChunkStorageMetadata(_size(state["offsets"]), _size(state["sizes"]))


def _index(record: Any) -> MetadataIndex:
    state = _state(record, "MetadataIndex")
    offset, index = state.get("offset"), state.get("index")
    if not isinstance(index, int | None):
        raise TypeError(f"found {index!r} in place of an index")
    return MetadataIndex(_text(state["fqn"]), None if offset is None else _size(offset), index)


def _place(record: Any) -> Any:
    state = _state(record, "_StorageInfo")
    name, start, size = _text(state["relative_path"]), state["offset"], state["length"]
    if not is_plain_name(name):
        raise ValueError(f"found the file {name!r}; allowed are names of files in the same folder")
    if state.get("transform_descriptors"):
        raise ValueError(f"{name} is compressed")
    if not isinstance(start, int) or not isinstance(size, int) or start < 0 or size < 0:
        raise ValueError(f"found {start!r} and {size!r} as offset and length in {name}")
    return storage_info(name, start, size)


def _state(record: Any, kind: str) -> Mapping[str, Any]:
    _is_record(record, kind)
    if not isinstance(record.state, dict):
        raise TypeError(f"found a {kind} without fields")
    return record.state


def _is_record(record: Any, kind: str) -> None:
    if not isinstance(record, _Record) or record.kind != kind:
        raise TypeError(f"found {getattr(record, 'kind', None) or type(record).__name__} in place of {kind}")


def _size(value: Any) -> torch.Size:
    if not isinstance(value, tuple) or not all(type(extent) is int and extent >= 0 for extent in value):
        raise TypeError(f"found {value!r} in place of a size")
    return torch.Size(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"found {value!r} in place of a name")
    return value
