"""The parts of a distributed checkpoint: this rank's boxes of named tensors, and torch planners that use them.

Boxes come from placements, so torch's planners need not inspect DTensors, for two reasons. Values may be on the host
when they are written, or be built one at a time. And torch 2.13 computes other boxes than FSDP2 creates if tensor ranks
hold parts of unequal size: over d4t2, tensor ranks cut 257 rows into 129 and 128, and data ranks cut each of these into
four, while ``compute_local_shape_and_global_offset`` cuts all 257 into eight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)

from archon_core.models.box import Box, Shape
from archon_engine.parallel.shards import local_part


@dataclass(frozen=True)
class Part:
    """A box of a tensor.

    Attributes:
        name: name of the tensor in the checkpoint.
        shape: shape of the whole tensor.
        box: position of the part in it.
        dtype: dtype of its elements.
        values: returns the elements, in the shape of the box.
    """

    name: str
    shape: Shape
    box: Box
    dtype: torch.dtype
    values: Callable[[], Tensor]


def part_of(name: str, tensor: Tensor) -> Part:
    """This rank's part of a DTensor, or all of a plain tensor."""
    values, box = local_part(tensor)
    return Part(name, tuple(tensor.shape), box, tensor.dtype, lambda: values)


class HostCopies:
    """Copies parts to the host, in memory that is reused for the next copies."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def of(self, parts: Iterable[Part]) -> list[Part]:
        """The same parts with copied values, which training does not change; they are valid until the next call."""
        copies, on_device = [], False
        for part in parts:
            values = part.values()
            on_device |= values.is_cuda
            copies.append(replace(part, values=self._copy(part.name, values)))
        if on_device:
            torch.cuda.current_stream().synchronize()
        return copies

    def _copy(self, name: str, values: Tensor) -> Callable[[], Tensor]:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != values.shape or buffer.dtype != values.dtype:
            buffer = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
            self._buffers[name] = buffer
        buffer.copy_(values, non_blocking=True)
        return lambda: buffer


class PartsPlanner(DefaultSavePlanner):
    """torch's ``SavePlanner`` for parts. If several ranks hold copies, one rank writes; the ranks share this work
    evenly."""

    def __init__(self, parts: Iterable[Part]) -> None:
        super().__init__()
        self._parts: Mapping[MetadataIndex, Part] = {
            MetadataIndex(part.name, torch.Size(part.box.start)): part for part in parts if part.box.numel
        }

    def create_local_plan(self) -> SavePlan:
        """One item per part."""
        self.plan = SavePlan([_item(index, part) for index, part in self._parts.items()], planner_data={})
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Any:
        """The values of a part."""
        return self._parts[write_item.index].values()


class BoxesPlanner(DefaultLoadPlanner):
    """torch's ``LoadPlanner`` that fills this rank's boxes of the given tensors."""

    def create_local_plan(self) -> LoadPlan:
        """One item per stored part that intersects a box."""
        assert self.metadata is not None, "torch has read it"
        self._values: dict[str, tuple[Tensor, Box]] = {name: local_part(t) for name, t in self.state_dict.items()}
        saved = self.metadata.state_dict_metadata
        return LoadPlan([item for name, (_, box) in self._values.items() for item in _reads(name, box, saved[name])])

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """This rank's storage of a tensor."""
        return self._values[index.fqn][0]


def _reads(name: str, box: Box, saved: Any) -> Iterator[ReadItem]:
    assert isinstance(saved, TensorStorageMetadata), f"{name}: only tensors are saved"
    for chunk in saved.chunks:
        stored = Box(tuple(chunk.offsets), tuple(chunk.sizes))
        common = box.intersect(stored)
        if common is not None:
            yield ReadItem(
                type=LoadItemType.TENSOR,
                dest_index=MetadataIndex(name, torch.Size(box.start)),
                dest_offsets=torch.Size(common.relative_to(box.start).start),
                storage_index=MetadataIndex(name, chunk.offsets),
                storage_offsets=torch.Size(common.relative_to(stored.start).start),
                lengths=torch.Size(common.shape),
            )


def _item(index: MetadataIndex, part: Part) -> WriteItem:
    chunk = ChunkStorageMetadata(torch.Size(part.box.start), torch.Size(part.box.shape))
    data = TensorWriteData(chunk, TensorProperties(dtype=part.dtype), torch.Size(part.shape))
    return WriteItem(index, WriteItemType.SHARD, tensor_data=data)
