"""Reads the weights of a training state as whole tensors, a box at a time, whatever layout wrote them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex

from archon_core.errors import WeightsError
from archon_core.models.box import Box, Shape
from archon_engine.checkpoint.dcp import WEIGHT, SavedState
from archon_engine.checkpoint.seal import check_file, map_bytes


@dataclass(frozen=True)
class _Chunk:
    """A stored box of a tensor, and its position in a file."""

    box: Box
    file: str
    start: int
    size: int


class StoredWeights:
    """Weights by name. Their bytes are memory-mapped, and read when they are copied.

    Attributes:
        shapes: name -> shape.
        dtypes: name -> type.
    """

    def __init__(self, saved: SavedState) -> None:
        """Check every file with tensors, and locate the weights.

        Raises:
            DamagedError: a file is damaged.
            WeightsError: the state has no checksums.
        """
        if saved.seal is None:
            raise WeightsError(
                f"training state {saved.folder}: found no checksums.json, so an earlier version wrote it; resume the "
                "run and let it save once, then use the new checkpoint"
            )
        self._folder = saved.folder
        entries = saved.weights
        self.shapes: dict[str, Shape] = {name: tuple(entry.size) for name, entry in entries.items()}
        self.dtypes: dict[str, torch.dtype] = {name: entry.properties.dtype for name, entry in entries.items()}
        self._files: dict[str, Tensor] = {}
        for name, sealed in saved.seal.items():
            if sealed.regions:
                check_file(saved.folder / name, sealed)
                self._files[name] = map_bytes(saved.folder / name, sealed.size)
        starts = {name: [region.start for region in sealed.regions] for name, sealed in saved.seal.items()}
        self._chunks: Mapping[str, list[_Chunk]] = {name: [] for name in entries}
        for name, entry in entries.items():
            for chunk in entry.chunks:
                info = saved.metadata.storage_data[MetadataIndex(WEIGHT + name, chunk.offsets)]
                place = bisect_left(starts[info.relative_path], info.offset)
                region = saved.seal[info.relative_path].regions[place]
                box = Box(tuple(chunk.offsets), tuple(chunk.sizes))
                self._chunks[name].append(_Chunk(box, info.relative_path, region.start, region.size))

    def copy(self, name: str, box: Box, destination: Tensor | None) -> None:
        """A ``BoxCopier``."""
        assert destination is not None, "one process converts"
        if name not in self._chunks:
            raise WeightsError(f"training state {self._folder}: found no weight {name!r}; choose a state of this model")
        for chunk in self._chunks[name]:
            part = chunk.box.intersect(box)
            if part is not None:
                content = self._files[chunk.file][chunk.start : chunk.start + chunk.size]
                values = content.view(self.dtypes[name]).view(chunk.box.shape)
                destination[part.relative_to(box.start).slices].copy_(values[part.relative_to(chunk.box.start).slices])
