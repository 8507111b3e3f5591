"""Traffic of Muon, which orthogonalises whole matrices: each is gathered on one rank, which sends the parts back.

Owners are assigned as in ``archon_engine.optimizer.muon``: largest matrix first, each to the least loaded rank.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from archon_core.layout.dims import ParallelDims
from archon_core.models.anatomy import WeightShape
from archon_plan.ledger import Group, Ledger
from archon_plan.setting import Setting
from archon_plan.shards import elements_per_rank, shards_of


def add_muon(ledger: Ledger, setting: Setting, pipeline_rank: int) -> None:
    """Add the two exchanges of a step, for the rank that sends the most."""
    dims = setting.dims
    matrices = [_Matrix.of(weight, dims) for weight in _hidden_matrices(setting, pipeline_rank)]
    if not matrices:
        return
    owned = _owned_elements(matrices, dims)
    # Beside owners, ranks differ by what they speak for and by uneven shards.
    ranks = range(dims.stage_size) if any(matrix.is_uneven for matrix in matrices) else {*owned, *_classes(dims)}
    different = Counter(matrices)
    sent = max(
        sum(count * matrix.gathered_from(rank) for matrix, count in different.items()) + owned.get(rank, 0)
        for rank in ranks
    )
    ledger.add_sent(Group.of("stage", dims), "all_to_all", "updates of matrices", sent * setting.types.master, 2)


@dataclass(frozen=True)
class _Matrix:
    """A matrix, or a stack of them.

    Attributes:
        weight: its shape.
        dims: the sizes of the axes.
        is_uneven: whether ranks hold parts of different size.
        copies: ranks that hold each element.
    """

    weight: WeightShape
    dims: ParallelDims
    is_uneven: bool
    copies: int

    @classmethod
    def of(cls, weight: WeightShape, dims: ParallelDims) -> _Matrix:
        return _matrix(weight, dims)

    def part(self, rank: int) -> int:
        """Elements on a rank."""
        return shards_of((self.weight,), self.dims, rank if self.is_uneven else 0).elements

    def gathered_from(self, rank: int) -> int:
        """Elements that a rank sends to the owner, if that is another rank: of ranks with copies, the first sends."""
        is_copied = self.weight.role != "expert" and self.weight.tensor_dim is None
        is_first = rank < self.dims.sharding_size and not (is_copied and rank % self.dims.tp)
        return self.part(rank) if is_first else 0


@lru_cache(maxsize=4096)
def _matrix(weight: WeightShape, dims: ParallelDims) -> _Matrix:
    counts = elements_per_rank(weight, dims)
    held = sum(elements * ranks for elements, ranks in counts.items())
    return _Matrix(weight, dims, is_uneven=len(counts) > 1, copies=held // weight.size)


def _hidden_matrices(setting: Setting, pipeline_rank: int) -> Iterator[WeightShape]:
    """The weights that Muon updates, in the order of the module."""
    for stage in setting.held_by(pipeline_rank):
        for number in stage.layers:
            kind = setting.anatomy.kinds[setting.anatomy.kind_of[number]]
            yield from (w for w in kind.weights if len(w.shape) in (2, 3) and not w.name.endswith("bias"))


def _owned_elements(matrices: Sequence[_Matrix], dims: ParallelDims) -> dict[int, int]:
    """Owner -> how many more elements it sends than a rank without matrices: the parts of its matrices back to their
    other holders. In exchange it keeps its own parts of them."""
    loads = [(0, rank) for rank in range(dims.stage_size)]
    owned: dict[int, int] = {}
    for matrix in sorted(matrices, key=lambda matrix: -matrix.weight.size):
        load, rank = heapq.heappop(loads)
        heapq.heappush(loads, (load + matrix.weight.size, rank))
        back = matrix.weight.size * matrix.copies - matrix.part(rank)
        owned[rank] = owned.get(rank, 0) + back - matrix.gathered_from(rank)
    return owned


def _classes(dims: ParallelDims) -> set[int]:
    """One rank of each kind of holder: first and later tensor ranks, first and later replicas."""
    return {place for place in (0, 1, dims.sharding_size, dims.sharding_size + 1) if place < dims.stage_size}
