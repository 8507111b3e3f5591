"""What a distributed checkpoint is made of, before anything is copied or written: this rank's boxes of named tensors.

Boxes come from placements, so torch's planner need not look at DTensors: their values may lie on the host by the time
they are written, or be made one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from archon_core.models.box import Box, Shape
from archon_engine.parallel.shards import local_part


@dataclass(frozen=True)
class Part:
    """A box of a tensor.

    Attributes:
        name: the tensor's, in the checkpoint.
        shape: of the whole tensor.
        box: which part of it.
        dtype: of its elements.
        values: gives them, shaped like the box.
    """

    name: str
    shape: Shape
    box: Box
    dtype: torch.dtype
    values: Callable[[], Tensor]


def part_of(name: str, tensor: Tensor) -> Part:
    """What this rank holds of a DTensor, or all of a plain tensor."""
    values, box = local_part(tensor)
    return Part(name, tuple(tensor.shape), box, tensor.dtype, lambda: values)


class HostCopies:
    """Copies of parts on the host, in memory that is kept for the next time."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def of(self, parts: Iterable[Part]) -> list[Part]:
        """The same parts with values that training no longer touches; they last until the next call."""
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
    """torch's ``SavePlanner`` for parts. Of copies on several ranks one is written; the ranks share them evenly."""

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
        """The values of a part, now."""
        return self._parts[write_item.index].values()


def _item(index: MetadataIndex, part: Part) -> WriteItem:
    chunk = ChunkStorageMetadata(torch.Size(part.box.start), torch.Size(part.box.shape))
    data = TensorWriteData(chunk, TensorProperties(dtype=part.dtype), torch.Size(part.shape))
    return WriteItem(index, WriteItemType.SHARD, tensor_data=data)
