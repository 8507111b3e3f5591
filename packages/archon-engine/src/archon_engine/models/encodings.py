"""Block formats of quantised checkpoints (``archon_core.models.encoded``), decoded to fp32.

MXFP4 values are exact in fp32, and in bfloat16 too. Values in FP8 blocks are products with fp32 factors, rounded to
fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from archon_core.errors import WeightsError
from archon_core.models.box import Box, Shape

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Values of the codes 0 to 7 of FP4; 8 to 15 are their negatives (OCP Microscaling Formats (MX) v1.0, table 5)."""


@dataclass(frozen=True)
class Mxfp4:
    """FP4 values in blocks of 32 along the last dim, which share a power of two (OCP Microscaling Formats (MX) v1.0).

    A tensor [..., K] is stored as uint8 codes [..., K / 32, 16], two values per byte with the first in the low bits,
    and uint8 exponents [..., K / 32], whose bias is 127. gpt-oss checkpoints name these ``*_blocks`` and ``*_scales``.
    """

    block: int = 32

    def shapes(self, shape: Shape) -> tuple[Shape, Shape]:
        """See ``archon_core.models.encoded.Encoding``."""
        if not shape or shape[-1] % self.block:
            raise WeightsError(
                f"MXFP4: found a tensor of shape {shape}; its last dim is a multiple of {self.block} (values per block)"
            )
        blocks = (*shape[:-1], shape[-1] // self.block)
        return (*blocks, self.block // 2), blocks

    def boxes(self, box: Box) -> tuple[Box, Box]:
        """Whole blocks, since a scale belongs to all values of its block."""
        first, stop = box.start[-1] // self.block, -(-box.stop[-1] // self.block)
        start, shape, step = (*box.start[:-1], first), (*box.shape[:-1], stop - first), (*box.steps[:-1], 1)
        return Box((*start, 0), (*shape, self.block // 2), (*step, 1)), Box(start, shape, step)

    def decode(self, parts: Sequence[Tensor], box: Box) -> Tensor:
        """fp32, of the shape of ``box``."""
        codes, exponents = parts
        values = torch.tensor([*_E2M1, *(-value for value in _E2M1)])
        # One look-up per byte: a pair of values, the low bits first.
        pairs = torch.stack([values.repeat(16), values.repeat_interleave(16)], -1)
        blocks = pairs[codes.int()].flatten(-2)
        decoded = torch.ldexp(blocks, exponents.int()[..., None] - 127).flatten(-2)
        start = box.start[-1] % self.block
        return decoded[..., start : start + (box.shape[-1] - 1) * box.steps[-1] + 1 : box.steps[-1]]


@dataclass(frozen=True)
class BlockFp8:
    """FP8 (E4M3) matrices with a factor per block of rows and columns, as DeepSeek-V3 stores them.

    A matrix [N, K] is stored as FP8 values [N, K] and fp32 factors [N / rows, K / columns], rounded up. Source: section
    3.3.2 of arXiv:2412.19437, and ``weight_dequant`` of its published inference code.

    Attributes:
        rows: rows of a block.
        columns: columns of a block.
    """

    rows: int = 128
    columns: int = 128

    def shapes(self, shape: Shape) -> tuple[Shape, Shape]:
        """See ``archon_core.models.encoded.Encoding``."""
        if len(shape) != 2:
            raise WeightsError(f"FP8 in blocks: found a tensor of shape {shape}; only matrices have blocks")
        return shape, (-(-shape[0] // self.rows), -(-shape[1] // self.columns))

    def boxes(self, box: Box) -> tuple[Box, Box]:
        """The same values, and the factors of all blocks that they touch."""
        sizes = (self.rows, self.columns)
        start = tuple(a // size for a, size in zip(box.start, sizes, strict=True))
        shape = tuple(-(-b // size) - a for a, b, size in zip(start, box.stop, sizes, strict=True))
        return box, Box(start, shape)

    def decode(self, parts: Sequence[Tensor], box: Box) -> Tensor:
        """fp32, of the shape of ``box``."""
        values, factors = parts
        sizes = (self.rows, self.columns)
        rows, columns = (
            torch.arange(a, b, step) // size - a // size
            for a, b, step, size in zip(box.start, box.stop, box.steps, sizes, strict=True)
        )
        return values.float() * factors.float()[rows][:, columns]
