"""Axis-aligned boxes inside tensors: the unit in which weights are read, written and moved."""

from __future__ import annotations

import math
from dataclasses import dataclass

Shape = tuple[int, ...]


def chunk_of(extent: int, size: int, place: int) -> range:
    """The indices of ``extent`` that rank ``place`` of ``size`` holds, as in ``torch.chunk`` and DTensor's ``Shard``:
    parts have size ``extent / size``, rounded up; the last ones are smaller or empty."""
    part = -(-extent // size)
    return range(min(place * part, extent), min((place + 1) * part, extent))


@dataclass(frozen=True)
class Box:
    """A rectangular part of a tensor.

    Attributes:
        start: index of the first element, per dim.
        shape: extent, per dim.
    """

    start: Shape
    shape: Shape

    def __post_init__(self) -> None:
        assert len(self.start) == len(self.shape), f"box of {len(self.start)} starts and {len(self.shape)} extents"

    @classmethod
    def whole(cls, shape: Shape) -> Box:
        """All of a tensor of ``shape``."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def stop(self) -> Shape:
        """One past the last index, per dim."""
        return tuple(a + n for a, n in zip(self.start, self.shape, strict=True))

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index."""
        return tuple(slice(a, a + n) for a, n in zip(self.start, self.shape, strict=True))

    def intersect(self, other: Box) -> Box | None:
        """The intersection of both boxes; ``None`` if it is empty."""
        start = tuple(map(max, self.start, other.start))
        stop = tuple(map(min, self.stop, other.stop))
        if any(a >= b for a, b in zip(start, stop, strict=True)):
            return None
        return Box(start, tuple(b - a for a, b in zip(start, stop, strict=True)))

    def relative_to(self, origin: Shape) -> Box:
        """The same box in coordinates relative to ``origin``."""
        return Box(tuple(a - o for a, o in zip(self.start, origin, strict=True)), self.shape)


@dataclass(frozen=True)
class Link:
    """Equal elements of two tensors: a box of a Hugging Face tensor and a box of one of ours.

    Both boxes have the same shape, except that ours has an additional leading dim of size 1 if it stacks several
    tensors.

    Attributes:
        hf: name of the Hugging Face tensor.
        hf_box: the box in it.
        ours: name of our tensor.
        our_box: the box in it.
    """

    hf: str
    hf_box: Box
    ours: str
    our_box: Box

    def __post_init__(self) -> None:
        shape = self.our_box.shape
        assert self.hf_box.shape in (shape, shape[1:]), f"link of {self.hf_box} and {self.our_box}"
        assert not self.stacked or shape[0] == 1, f"link of {self.hf_box} and {self.our_box}"

    @property
    def stacked(self) -> bool:
        """Whether our box has the additional leading dim."""
        return len(self.our_box.shape) > len(self.hf_box.shape)

    def clipped_to_ours(self, box: Box) -> Link | None:
        """The part of the link inside ``box`` of our tensor; ``None`` if there is none."""
        ours = self.our_box.intersect(box)
        if ours is None:
            return None
        skip = 1 if self.stacked else 0
        offset = ours.relative_to(self.our_box.start).start[skip:]
        start = tuple(a + o for a, o in zip(self.hf_box.start, offset, strict=True))
        return Link(self.hf, Box(start, ours.shape[skip:]), self.ours, ours)
