"""Axis-aligned boxes inside tensors: the unit in which weights are read, written and moved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

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
        step: distance between neighbouring elements, per dim; empty if it is 1 in all dims. Only boxes in Hugging Face
            tensors have steps.
    """

    start: Shape
    shape: Shape
    step: Shape = ()

    def __post_init__(self) -> None:
        assert len(self.start) == len(self.shape), f"box of {len(self.start)} starts and {len(self.shape)} extents"
        assert len(self.step) in (0, len(self.shape)), f"box of {len(self.step)} steps and {len(self.shape)} extents"

    @classmethod
    def whole(cls, shape: Shape) -> Box:
        """All of a tensor of ``shape``."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def steps(self) -> Shape:
        """Distance between neighbouring elements, per dim."""
        return self.step or (1,) * len(self.shape)

    @property
    def stop(self) -> Shape:
        """One past the last index, per dim."""
        return tuple(a + (n - 1) * s + 1 for a, n, s in zip(self.start, self.shape, self.steps, strict=True))

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index."""
        return (
            tuple(map(slice, self.start, self.stop, self.step))
            if self.step
            else tuple(map(slice, self.start, self.stop))
        )

    def intersect(self, other: Box) -> Box | None:
        """The intersection of both boxes, which must not have steps; ``None`` if it is empty."""
        assert self.step == other.step == (), "boxes with steps do not intersect in boxes"
        start = tuple(map(max, self.start, other.start))
        stop = tuple(map(min, self.stop, other.stop))
        if any(a >= b for a, b in zip(start, stop, strict=True)):
            return None
        return Box(start, tuple(b - a for a, b in zip(start, stop, strict=True)))

    def relative_to(self, origin: Shape) -> Box:
        """The same box in coordinates relative to ``origin``."""
        return Box(tuple(a - o for a, o in zip(self.start, origin, strict=True)), self.shape, self.step)


@dataclass(frozen=True)
class Link:
    """Equal elements of two tensors: a box of a Hugging Face tensor and a box of one of ours.

    Both boxes have the same shape after the dims of the first are put into ``order``, except that ours has an
    additional leading dim of size 1 if it stacks several tensors.

    Attributes:
        hf: name of the Hugging Face tensor.
        hf_box: the box in it.
        ours: name of our tensor.
        our_box: the box in it.
        order: dims of the Hugging Face tensor in the order of ours; empty for the same order.
    """

    hf: str
    hf_box: Box
    ours: str
    our_box: Box
    order: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        shape = self.our_box.shape
        found = reordered(self.hf_box.shape, self.order)
        assert found in (shape, shape[1:]), f"link of {self.hf_box} and {self.our_box}, order {self.order}"
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
        back = tuple(map(self.order.index, range(len(self.order))))
        offset, shape = reordered(offset, back), reordered(ours.shape[skip:], back)
        start = tuple(a + o * s for a, o, s in zip(self.hf_box.start, offset, self.hf_box.steps, strict=True))
        return Link(self.hf, Box(start, shape, self.hf_box.step), self.ours, ours, self.order)

    def as_ours(self, part: Any) -> Any:
        """A view with the shape of ``our_box`` of ``part``, a tensor with the elements of ``hf_box``."""
        part = part.permute(*self.order) if self.order else part
        return part[None] if self.stacked else part


def reordered(values: Shape, order: tuple[int, ...]) -> Shape:
    """``values``, one per dim, in ``order``; unchanged for an empty order."""
    return tuple(values[dim] for dim in order) if order else values
