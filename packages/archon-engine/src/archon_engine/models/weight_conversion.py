"""Copies weights through a resolved map, in both directions, a box at a time.

Callers provide access to the bytes: a ``BoxReader`` may read a file or slice a tensor, a ``BoxCopier`` may gather
shards from other ranks. Memory holds no more than the tensor being built and one slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from archon_core.models.box import Box, Link
from archon_core.models.weight_map import ResolvedMap

DECODED_AT_ONCE = 2**24
"""Most elements of a quantised tensor that are decoded at a time, if a row has no more."""

BoxReader = Callable[[str, Box], Tensor]
"""Returns the elements of a named tensor inside a box, in the shape of the box."""

BoxCopier = Callable[[str, Box, Tensor | None], None]
"""Copies the elements of a named tensor inside a box into a tensor of the box's shape, casting to its type. The tensor
is ``None`` on ranks that only send their shards to another rank."""


def read_from(tensors: Mapping[str, Tensor]) -> BoxReader:
    """A ``BoxReader`` of whole tensors in memory."""
    return lambda name, box: tensors[name][box.slices]


def fill_ours(destination: Tensor, name: str, box: Box, weights: ResolvedMap, read_hf: BoxReader) -> None:
    """Copy ``box`` of our tensor ``name`` into ``destination``, which has the box's shape, casting to its dtype.

    Only elements inside the box are read from Hugging Face tensors.
    """
    assert tuple(destination.shape) == box.shape, f"{name}: {tuple(destination.shape)} for a box of {box.shape}"
    filled = 0
    for link in weights.links_in(name, box):
        for piece in _pieces(link) if link.hf in weights.encoded else (link,):
            part = destination[piece.our_box.relative_to(box.start).slices]
            part.copy_(piece.as_ours(read_hf(piece.hf, piece.hf_box)))
        filled += link.our_box.numel
    assert filled == box.numel, f"{name}: the links cover {filled} of {box.numel} elements"


def _pieces(link: Link) -> Iterator[Link]:
    """The link in parts along the first dim: decoding needs several times the memory of its result."""
    start, shape = link.our_box.start, link.our_box.shape
    n_rows = max(1, DECODED_AT_ONCE * shape[0] // link.our_box.numel)
    for row in range(0, shape[0], n_rows):
        rows = Box((start[0] + row, *start[1:]), (min(n_rows, shape[0] - row), *shape[1:]))
        piece = link.clipped_to_ours(rows)
        assert piece is not None, "the rows are those of the link"
        yield piece


def copy_from(tensors: Mapping[str, Tensor]) -> BoxCopier:
    """A ``BoxCopier`` of whole tensors in memory."""

    def copy(name: str, box: Box, destination: Tensor | None) -> None:
        if destination is not None:
            destination.copy_(tensors[name].detach()[box.slices])

    return copy


def assemble_hf(
    hf_name: str, weights: ResolvedMap, copy_ours: BoxCopier, dtype: torch.dtype, scratch: Tensor | None = None
) -> Tensor:
    """Build one Hugging Face tensor of ``dtype`` from boxes of our tensors, on the CPU or where ``scratch`` is.

    Args:
        scratch: memory to build it in, at least as large; ``None`` allocates new memory, which is slower to write for
            the first time.
    """
    shape = weights.hf_shapes[hf_name]
    result = torch.empty(shape, dtype=dtype) if scratch is None else scratch[: math.prod(shape)].view(shape)
    for link in weights.links_of_hf[hf_name]:
        copy_ours(link.ours, link.our_box, link.as_ours(result[link.hf_box.slices]))
    return result


def stored_dtype(hf_name: str, weights: ResolvedMap, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a Hugging Face tensor is saved and published, where that of most is ``dtype``."""
    return torch.promote_types(dtype, torch.float32) if hf_name in weights.kept_in_fp32 else dtype


def send_shards(hf_name: str, weights: ResolvedMap, copy_ours: BoxCopier) -> None:
    """Send this rank's shards to the rank that runs ``assemble_hf``."""
    for link in weights.links_of_hf[hf_name]:
        copy_ours(link.ours, link.our_box, None)
