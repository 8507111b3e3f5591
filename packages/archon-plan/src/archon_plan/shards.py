"""The part of a weight that each rank holds: tensor or expert ranks shard it first, then FSDP2 shards what they leave.

Ranks are numbered inside one pipeline rank, as in ``ParallelDims.dense_grid``, tensor ranks innermost. Rank 0 holds the
largest part of every weight, because chunks are as large as the first one, except for the last ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from operator import add, sub

from archon_core.layout.dims import ParallelDims
from archon_core.models.anatomy import WeightShape
from archon_core.models.box import chunk_of


@dataclass(frozen=True)
class Shards:
    """Numbers of elements on one rank, of one weight or of several together.

    Attributes:
        elements: that this rank updates.
        stored: of its storage. FSDP2 pads dim 0 to the largest part.
        whole: after gathering over the data ranks.
        gathered: of the storage of the gathered weights, padding included.
        rearranged: of ``gathered``, those of weights that FSDP2 shards along another dim than 0. It gathers these into
            a temporary buffer first.
        tensors: number of weights.
        matrices: of ``elements``, those of weights with two or three dims.
        matrix_tensors: number of weights with two or three dims.
    """

    elements: int = 0
    stored: int = 0
    whole: int = 0
    gathered: int = 0
    rearranged: int = 0
    tensors: int = 0
    matrices: int = 0
    matrix_tensors: int = 0

    def __add__(self, other: Shards) -> Shards:
        return Shards(*map(add, self.numbers, other.numbers))

    def __sub__(self, other: Shards) -> Shards:
        return Shards(*map(sub, self.numbers, other.numbers))

    def times(self, count: int) -> Shards:
        """The numbers of ``count`` equal sets of weights."""
        return Shards(*(number * count for number in self.numbers))

    @property
    def numbers(self) -> tuple[int, ...]:
        """All attributes in order."""
        return (
            self.elements,
            self.stored,
            self.whole,
            self.gathered,
            self.rearranged,
            self.tensors,
            self.matrices,
            self.matrix_tensors,
        )


NOTHING = Shards()


@lru_cache(maxsize=16384)
def shards_of(weights: tuple[WeightShape, ...], dims: ParallelDims, rank: int = 0) -> Shards:
    """What one rank holds of several weights.

    Args:
        weights: of any roles.
        dims: the sizes of the axes.
        rank: number of the rank inside its pipeline rank.
    """
    held = [_shards(weight, dims, rank).numbers for weight in weights]
    return Shards(*map(sum, zip(*held, strict=True))) if held else NOTHING


def _shards(weight: WeightShape, dims: ParallelDims, rank: int) -> Shards:
    local = _after_model_parallelism(weight, dims, rank)
    size, place, dim = _data_ranks(weight, local, dims, rank)
    rows = prod(local) // local[dim] if local[dim] else 0
    part = -(-local[dim] // size)
    elements, gathered = rows * len(chunk_of(local[dim], size, place)), rows * part * size
    is_matrix = 2 <= len(local) <= 3
    return Shards(
        elements=elements,
        stored=rows * part,
        whole=prod(local),
        gathered=gathered,
        rearranged=gathered if dim else 0,
        tensors=1,
        matrices=elements if is_matrix else 0,
        matrix_tensors=int(is_matrix),
    )


def elements_per_rank(weight: WeightShape, dims: ParallelDims) -> Mapping[int, int]:
    """Number of elements -> how many ranks of a pipeline rank hold so many of ``weight``, largest first."""
    counts: Counter[int] = Counter()
    for local, copies in _parts_of_model_parallelism(weight, dims):
        size, _, dim = _data_ranks(weight, local, dims, 0)
        rows = prod(local) // local[dim] if local[dim] else 0
        for extent, ranks in _chunks(local[dim], size).items():
            counts[rows * extent] += ranks * copies * dims.dp_replicate
    return dict(sorted(counts.items(), reverse=True))


def _after_model_parallelism(weight: WeightShape, dims: ParallelDims, rank: int) -> tuple[int, ...]:
    """The shape that tensor ranks, or expert and expert tensor ranks, leave on ``rank``."""
    shape = list(weight.shape)
    if weight.role == "expert":
        shape[0] //= dims.ep
        if weight.tensor_dim is not None:
            shape[weight.tensor_dim] //= dims.etp
    elif weight.tensor_dim is not None:
        shape[weight.tensor_dim] = len(chunk_of(shape[weight.tensor_dim], dims.tp, rank % dims.tp))
    return tuple(shape)


def _parts_of_model_parallelism(weight: WeightShape, dims: ParallelDims) -> Iterable[tuple[tuple[int, ...], int]]:
    """The shapes of the parts of a weight on the ranks of one place among the data ranks, and how many have each."""
    shape = list(weight.shape)
    if weight.role == "expert":
        yield _after_model_parallelism(weight, dims, 0), dims.ep * dims.etp
    elif weight.tensor_dim is None:
        yield weight.shape, dims.tp
    else:
        for extent, ranks in _chunks(shape[weight.tensor_dim], dims.tp).items():
            shape[weight.tensor_dim] = extent
            yield tuple(shape), ranks


def _data_ranks(weight: WeightShape, local: tuple[int, ...], dims: ParallelDims, rank: int) -> tuple[int, int, int]:
    """Over how many ranks FSDP2 shards ``local``, which of them ``rank`` is, and along which dim.

    Dense weights are sharded along dim 0, experts along the first dim that divides evenly, if there is one.
    """
    if weight.role != "expert":
        size = dims.dp_shard * dims.cp
        return size, rank // dims.tp % size, 0
    size = dims.edp
    even = next((dim for dim, extent in enumerate(local) if extent % size == 0), 0)
    return size, rank // (dims.ep * dims.etp) % size, even


def _chunks(extent: int, size: int) -> dict[int, int]:
    """Extent of a chunk -> how many of ``size`` ranks have it, by the rule of ``chunk_of``."""
    part = -(-extent // size)
    full, rest = divmod(extent, part) if part else (0, 0)
    chunks = {part: full} if full else {}
    if rest:
        chunks[rest] = 1
    if empty := size - full - bool(rest):
        chunks[0] = chunks.get(0, 0) + empty
    return chunks
