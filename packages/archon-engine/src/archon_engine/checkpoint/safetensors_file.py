"""Reads slices of safetensors files, and writes these files tensor by tensor.

The safetensors package reads slices, but writes a file only from a mapping with all tensors in memory. The format is
simple enough to write as a stream: 8 bytes of header length, a JSON header with every tensor's type, shape and offsets,
then the bytes (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from archon_core.errors import DamagedError, WeightsError
from archon_core.models.box import Box, Shape
from archon_core.receiving.checksum import bytes_of
from archon_core.unique_names import NameTwiceError, unique_names
from archon_engine.checkpoint.seal import (
    Region,
    RegionWriter,
    SealedFile,
    frame_checksum,
    map_bytes,
)

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}
"""Types of weights by their name in the format, in the order of tensors in a file: wider types first, so that all are
aligned. Quantised types are missing, because their numbers need scales."""

_ENCODED: Mapping[str, torch.dtype] = {
    **DTYPES,
    "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
}
"""Types of tensors that encode others (``archon_core.models.encoded``)."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class SafetensorsReader:
    """One open file. Tensors are memory-mapped; only requested slices are read.

    Attributes:
        path: the file.
        shapes: name -> shape of every tensor in it.
        bytes_read: size of all slices read so far.
    """

    def __init__(self, path: Path) -> None:
        """Open and check the header.

        Raises:
            DamagedError: the file is missing, damaged or truncated.
        """
        self.path = path
        self.bytes_read = 0
        try:
            with safe_open(path, framework="pt", device="cpu"):  # checks the header against the file's size
                pass
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length), object_pairs_hook=unique_names)
        except (SafetensorError, OSError, NameTwiceError) as error:
            raise DamagedError(
                f"{path}: found no readable safetensors file ({error}); it is damaged or incomplete; copy it again"
            ) from error
        header.pop("__metadata__", None)
        self._spans = {name: tuple(8 + length + end for end in entry["data_offsets"]) for name, entry in header.items()}
        self._types = {name: entry["dtype"] for name, entry in header.items()}
        self._content = map_bytes(path, path.stat().st_size)
        self.shapes: dict[str, Shape] = {name: tuple(entry["shape"]) for name, entry in header.items()}
        self._foreign = {name: kind for name, kind in self._types.items() if kind not in DTYPES}

    def dtype(self, name: str) -> torch.dtype:
        """The stored dtype of a tensor.

        Raises:
            WeightsError: Archon does not compute in this type.
        """
        if name in self._foreign:
            raise WeightsError(
                f"{self.path}: tensor {name!r} has type {self._foreign[name]}; allowed are {', '.join(DTYPES)}; "
                "convert a quantised checkpoint first"
            )
        return DTYPES[self._types[name]]

    def read(self, name: str, box: Box) -> Tensor:
        """The elements inside ``box``, in the stored dtype: a view of the mapped file, which must not be modified."""
        return self._read(name, box, self.dtype(name))

    def read_stored(self, name: str, box: Box) -> Tensor:
        """As ``read``, for a tensor that encodes another, whose type may be one that Archon does not compute in.

        Raises:
            WeightsError: no encoding uses the type.
        """
        kind = self._types[name]
        if kind not in _ENCODED:
            raise WeightsError(
                f"{self.path}: tensor {name!r} has type {kind}; allowed in quantised checkpoints are "
                f"{', '.join(_ENCODED)}; convert the checkpoint first"
            )
        return self._read(name, box, _ENCODED[kind])

    def _read(self, name: str, box: Box, dtype: torch.dtype) -> Tensor:
        start, end = self._spans[name]
        content = self._content[start:end]
        if start % dtype.itemsize:
            content = content.clone()  # old writers do not align tensors
        self.bytes_read += box.numel * dtype.itemsize
        return content.view(dtype).view(self.shapes[name])[box.slices]


class SafetensorsWriter:
    """Writes one file; a context manager. Tensors may be written in any order, one at a time."""

    def __init__(self, path: Path, entries: Mapping[str, tuple[torch.dtype, Shape]]) -> None:
        """Args:
        path: the file to create.
        entries: name -> dtype and shape, for every tensor of the file.
        """
        self.path = path
        formats = {name: _format_name(dtype, name) for name, (dtype, _) in entries.items()}
        type_order = list(DTYPES)
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._spans: dict[str, tuple[int, int]] = {}
        end = 0
        for name in sorted(entries, key=lambda name: (type_order.index(formats[name]), name)):
            dtype, shape = entries[name]
            start, end = end, end + math.prod(shape) * dtype.itemsize
            self._spans[name] = (start, end)
            header[name] = {"dtype": formats[name], "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        self._header = text + b" " * (-len(text) % 8)
        self._size = end
        self._pending = set(self._spans)
        self._file: BinaryIO | None = None
        self._regions: list[Region] = []

    def __enter__(self) -> SafetensorsWriter:
        self._file = open(self.path, "wb")
        self._file.write(len(self._header).to_bytes(8, "little"))
        self._file.write(self._header)
        self._writer = RegionWriter(self._file)
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor, which must have the dtype and size given in ``entries``."""
        assert self._file is not None, "the writer is not open"
        start, end = self._spans[name]
        content = bytes_of(tensor.detach().cpu().contiguous())
        assert content.numel() == end - start, f"{name}: {content.numel()} bytes for a place of {end - start}"
        place = 8 + len(self._header) + start
        self._file.seek(place)
        self._regions.append(self._writer.write(content, place))
        self._pending.discard(name)

    def sealed(self) -> SealedFile:
        """The seal of the file. Call it after the last ``write``."""
        regions = sorted((region for region in self._regions if region.size), key=lambda region: region.start)
        length = len(self._header).to_bytes(8, "little")
        return SealedFile(8 + len(self._header) + self._size, frame_checksum([length, self._header]), tuple(regions))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._writer.close()
        self._file.close()
        assert error is not None or not self._pending, f"{self.path}: never written: {sorted(self._pending)}"


def _format_name(dtype: torch.dtype, name: str) -> str:
    if dtype not in _NAMES:
        raise WeightsError(
            f"tensor {name!r}: found {dtype}; a safetensors file allows {', '.join(map(str, _NAMES))}; choose one"
        )
    return _NAMES[dtype]
