"""The operations of norms and projections as archon-engine computes them: ``archon_engine.nn.norm``, ``rms_norm``,
``tiles`` and ``linear``."""

from __future__ import annotations

from collections.abc import Iterator

from archon_plan.block_sizes import FP32, BlockSizes
from archon_plan.liveness import Operation

TILE_ELEMENTS = 2**17
"""``archon_engine.nn.tiles``'s elements of a tile of rows, on a CPU; other devices take all rows at once."""


def norm(
    name: str, source: str, rows: float, width: float, s: BlockSizes, *, stays: bool = False
) -> Iterator[Operation]:
    """``archon_engine.nn.norm.RMSNorm`` of [rows, width]. The result is called ``name``.

    Saved are the source and the root of every row. Tiles of rows go through fp32 buffers: while one is widened, the
    buffers of the last tile still exist.
    """
    own, weights = rows * width * s.value_bytes, width * s.value_bytes
    if s.compiled:
        yield Operation(
            name, own, (source,), (source,), extra=rows * FP32, behind=own, weights=weights, fused=True, stays=stays
        )
        return
    tile, several = tile_of(rows, width, s)
    if s.value_bytes < FP32:
        # Forward: the row in fp32 and its square. Backward: input, gradient, and their product.
        beside, behind = 2 * tile * FP32, (5 if several else 3) * tile * FP32
    else:
        beside, behind = tile * FP32, (2 if several else 1) * tile * FP32
    yield Operation(name, own, (source,), (source,), extra=rows * FP32, beside=beside, behind=behind, weights=weights)


def tile_of(rows: float, width: float, s: BlockSizes) -> tuple[float, bool]:
    """Elements of a tile of [rows, width] (``archon_engine.nn.tiles``), and whether there are several."""
    size = max(1, TILE_ELEMENTS // max(int(width), 1)) if s.on_cpu else rows
    return min(size, rows) * width, rows > size


def linear(s: BlockSizes, name: str, source: str, rows: float, given: float, made: float) -> Operation:
    """A projection of [rows, given] to [rows, made] saves its input."""
    b = s.value_bytes
    return Operation(name, b * rows * made, (source,), (source,), kept=True, weights=b * given * made)
