"""The tensor sizes that a model allows: pure arithmetic, shared by dry runs and runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from archon_core.errors import LayoutError
from archon_core.layout.layout import Layout


@dataclass(frozen=True)
class ShardedExtents:
    """The extents that layouts shard.

    Attributes:
        by_tensor_ranks: name -> extent that tensor parallelism shards evenly.
        unequal: name -> extent that tensor parallelism shards with a possibly smaller last part.
    """

    by_tensor_ranks: Mapping[str, int] = field(default_factory=dict)
    unequal: Mapping[str, int] = field(default_factory=dict)

    def allows_tensor(self, size: int) -> bool:
        """Whether ``size`` tensor ranks can shard every extent."""
        return not self.not_divided_by(size) and not self.too_few_for(size)

    def not_divided_by(self, size: int) -> dict[str, int]:
        """The extents that ``size`` does not divide evenly."""
        return {what: extent for what, extent in self.by_tensor_ranks.items() if extent % size}

    def too_few_for(self, size: int) -> dict[str, int]:
        """The extents of which some of ``size`` ranks would get an empty part, which FSDP2 cannot reduce."""
        # All parts but the last have the rounded-up size; see ``archon_core.models.box.chunk_of``.
        return {what: extent for what, extent in self.unequal.items() if -(-extent // size) * (size - 1) >= extent}


def check_sizes(extents: ShardedExtents, layout: Layout, *, option: str) -> None:
    """Refuse tensor sizes that do not divide their extents, or leave ranks without a part.

    Raises:
        LayoutError: with the extents and the largest valid size.
    """
    tensor = layout.dims["t"]
    where = f"{option} {str(layout)!r}"
    if not extents.allows_tensor(tensor):
        fix = _largest("t", tensor, extents.allows_tensor)
        if broken := extents.not_divided_by(tensor):
            raise LayoutError(f"{where}: found t{tensor}; it must divide the model's {_listed(broken)}; {fix}")
        few = _listed(extents.too_few_for(tensor))
        raise LayoutError(
            f"{where}: found t{tensor}; the model's {few} are too few: in parts of equal size, the last one smaller, "
            f"some tensor ranks get none; {fix}"
        )


def _largest(letter: str, size: int, works: Callable[[int], bool]) -> str:
    largest = max(smaller for smaller in range(1, size) if works(smaller))
    if largest == 1:
        return f"no smaller one does; leave {letter} out"
    return f"the largest {letter} below {size} that works is {letter}{largest}"


def _listed(extents: Mapping[str, int]) -> str:
    return ", ".join(f"{what} ({extent})" for what, extent in extents.items())
