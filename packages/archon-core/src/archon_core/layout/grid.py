"""Ranks on a row-major grid of named axes: the arithmetic of device meshes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archon_core.errors import LayoutError


@dataclass(frozen=True)
class RankGrid:
    """Ranks 0 to size-1 on named axes, outermost first: neighbours on the last axis have consecutive ranks.

    Attributes:
        axes: names, outermost first.
        sizes: as many sizes.
    """

    axes: tuple[str, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.axes) == len(self.sizes) == len(set(self.axes)), "each axis has one name and one size"

    @property
    def size(self) -> int:
        """Number of ranks."""
        return math.prod(self.sizes)

    def coordinates(self, rank: int) -> dict[str, int]:
        """The rank's coordinate on each axis.

        Raises:
            LayoutError: there is no such rank.
        """
        if not 0 <= rank < self.size:
            raise LayoutError(
                f"rank {rank}: found outside the layout; allowed: 0 to {self.size - 1}; "
                f"fix: start {self.size} processes, or change the layout to fit the processes that run"
            )
        places = []
        for size in reversed(self.sizes):
            rank, place = divmod(rank, size)
            places.append(place)
        return dict(zip(self.axes, reversed(places), strict=True))

    def rank(self, coordinates: Mapping[str, int]) -> int:
        """The rank with these coordinates; the inverse of ``coordinates``."""
        assert coordinates.keys() == set(self.axes), f"one coordinate for each of {self.axes}"
        rank = 0
        for axis, size in zip(self.axes, self.sizes, strict=True):
            assert 0 <= coordinates[axis] < size, f"{axis}={coordinates[axis]} of {size}"
            rank = rank * size + coordinates[axis]
        return rank

    def ranks_along(self, axes: str | Sequence[str], rank: int) -> tuple[int, ...]:
        """The ranks that differ from ``rank`` only on ``axes``, including ``rank``, in increasing order.

        Several axes give the group of their product, such as ``("dp_shard", "cp")``, over which FSDP shards.

        Raises:
            LayoutError: there is no such rank.
        """
        own, start = self.coordinates(rank), rank
        for axis, stride, _ in self._chosen(axes):
            start -= own[axis] * stride
        return self._group_from(start, axes)

    def groups(self, axes: str | Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """All groups of ``ranks_along``, a partition of the ranks, ordered by first rank."""
        chosen = {axis for axis, _, _ in self._chosen(axes)}
        others = [axis for axis in self.axes if axis not in chosen]
        return tuple(self._group_from(start, axes) for start in self._group_from(0, others))

    def _group_from(self, start: int, axes: str | Sequence[str]) -> tuple[int, ...]:
        """The ranks along ``axes``, starting at a rank with coordinate 0 on each of them."""
        steps = [range(0, stride * size, stride) for _, stride, size in self._chosen(axes)]
        return tuple(start + sum(offsets) for offsets in itertools.product(*steps))

    def _chosen(self, axes: str | Sequence[str]) -> list[tuple[str, int, int]]:
        """Name, stride and size of ``axes``, outermost first; the stride is the rank distance of neighbours."""
        chosen = {axes} if isinstance(axes, str) else set(axes)
        assert chosen <= set(self.axes), f"{chosen} are among {self.axes}"
        strides = [math.prod(self.sizes[index + 1 :]) for index in range(len(self.sizes))]
        return [row for row in zip(self.axes, strides, self.sizes, strict=True) if row[0] in chosen]
