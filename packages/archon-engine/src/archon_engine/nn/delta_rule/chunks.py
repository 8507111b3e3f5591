"""Which chunk and which place of it each token of packed segments takes in the chunked delta rule.

Segments are scanned at the same time: step i processes the i-th chunk of every segment that has one. Chunks are stored
in the order of steps, and within a step in descending order of their segments' number of chunks, so a step reads one
slice, and the segments that go on are a prefix.

Legend: T tokens, S segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

CHUNK = 64
"""Tokens of a chunk, as in transformers and fla; fewer if all segments are shorter."""


@dataclass(frozen=True)
class ChunkPlan:
    """The chunks of segments.

    Attributes:
        size: tokens of a chunk; the last one of a segment may have fewer.
        active: number of segments of each step, in descending order.
        order: the segments in descending order of their chunks.
        rows: int64 [T], the row of each token among the rows of all chunks.
    """

    size: int
    active: tuple[int, ...]
    order: tuple[int, ...]
    rows: Tensor

    @classmethod
    def of(cls, lengths: tuple[int, ...], size: int = CHUNK) -> ChunkPlan:
        """The plan for segments of ``lengths``."""
        size = max(1, min(size, max(lengths, default=1)))
        counts = [-(-length // size) for length in lengths]
        order = sorted(range(len(lengths)), key=lambda segment: -counts[segment])
        active = tuple(sum(count > step for count in counts) for step in range(max(counts, default=0)))
        first = torch.tensor([0, *accumulate(active)], dtype=torch.int64)
        rank = torch.tensor(order, dtype=torch.int64).argsort()
        lengths_S = torch.tensor(lengths, dtype=torch.int64)
        segment = torch.repeat_interleave(torch.arange(len(lengths)), lengths_S, output_size=sum(lengths))
        offset = torch.arange(len(segment)) - (lengths_S.cumsum(0) - lengths_S)[segment]
        chunk = first[offset // size] + rank[segment]
        return cls(size, active, tuple(order), chunk * size + offset % size)

    @property
    def n_chunks(self) -> int:
        """Number of chunks of all segments."""
        return sum(self.active)
