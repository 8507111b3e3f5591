"""Row tiles: how elementwise operations stay inside a CPU's cache.

A norm, a rotation or a gate is several elementwise passes. Over a whole activation each pass reads and writes main
memory, which takes longer than its arithmetic. Over a tile of rows, all passes but the first read what the previous one
left in the cache. Rows are independent, so tiles change no number.

Tiles are for autograd functions, whose forward and backward passes autograd does not record. Compiled graphs fuse the
same operations by themselves, so layers give them the plain formula.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

TILE_ELEMENTS = 2**17
"""Elements of a tile: with three buffers of fp32, 1.5 MiB, as large as the cache of one or two cores."""


def tile_rows(rows: int, width: int, device_type: str) -> int:
    """Rows of a tile of a [rows, width] tensor; all rows on other devices, whose kernels are launched one by one."""
    return max(1, TILE_ELEMENTS // max(width, 1)) if device_type == "cpu" else max(rows, 1)


def tiles_of(x: Tensor) -> Iterator[slice]:
    """Slices of the first dim of ``x`` [rows, ...]; none without rows."""
    rows = x.shape[0]
    size = tile_rows(rows, x[:1].numel(), x.device.type)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def is_one_tile(x: Tensor) -> bool:
    """Whether all rows of ``x`` are one tile; then slices are superfluous."""
    return x.device.type != "cpu" or x.numel() <= TILE_ELEMENTS
