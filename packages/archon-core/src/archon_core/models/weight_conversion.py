"""Moving weights through a resolved map, in both directions, a box at a time.

Where the bytes come from is the caller's: a ``BoxReader`` may read a file, slice a tensor or gather shards from other
ranks. Nothing here holds more than the tensor it was asked for and one slice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from archon_core.models.box import Box
from archon_core.models.weight_map import ResolvedMap

BoxReader = Callable[[str, Box], Tensor]
"""Gives the elements of a named tensor inside a box, shaped like the box."""


def read_from(tensors: Mapping[str, Tensor]) -> BoxReader:
    """A reader of whole tensors that are in memory."""
    return lambda name, box: tensors[name][box.slices]


def fill_ours(destination: Tensor, name: str, box: Box, weights: ResolvedMap, read_hf: BoxReader) -> None:
    """Copy ``box`` of our tensor ``name`` into ``destination``, which has the box's shape, casting to its dtype.

    Reads from Hugging Face tensors what lies in the box and nothing else.
    """
    assert tuple(destination.shape) == box.shape, f"{name}: {tuple(destination.shape)} for a box of {box.shape}"
    filled = 0
    for link in weights.links_in(name, box):
        part = destination[link.our_box.relative_to(box.start).slices]
        part.copy_(read_hf(link.hf, link.hf_box).reshape(part.shape))
        filled += link.our_box.numel
    assert filled == box.numel, f"{name}: the links cover {filled} of {box.numel} elements"


def assemble_hf(hf_name: str, weights: ResolvedMap, read_ours: BoxReader, dtype: torch.dtype | None = None) -> Tensor:
    """One Hugging Face tensor, on the CPU, made from boxes of ours.

    Args:
        dtype: the type to cast to; ``None`` keeps that of our tensors.
    """
    result: Tensor | None = None
    for link in weights.links_of_hf[hf_name]:
        part = read_ours(link.ours, link.our_box).detach()
        if result is None:
            result = torch.empty(weights.hf_shapes[hf_name], dtype=dtype or part.dtype)
        result[link.hf_box.slices].copy_(part.reshape(link.hf_box.shape))
    assert result is not None, f"{hf_name} has no links"
    return result
