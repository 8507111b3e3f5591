"""The kinds of rule in a weight map. Each maps boxes of Hugging Face tensors to the equal boxes of ours.

A rule is data; ``links`` applies it to the shapes of our tensors. Nothing here reads or writes a weight, so loading any
slice, saving and publication all use the same rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from archon_core.errors import WeightsError
from archon_core.models.box import Box, Link, Shape, reordered
from archon_core.models.name_pattern import NamePattern


class Rule(Protocol):
    """A rule that produces links."""

    def links(self, shapes: Mapping[str, Shape]) -> Iterator[Link]:
        """Links for every name in ``shapes`` that the rule covers; together they cover those tensors exactly."""


@dataclass(frozen=True)
class Rename:
    """One tensor, two names.

    Attributes:
        hf: pattern of the Hugging Face name.
        ours: pattern of our name, with the same placeholders.
        init_if_missing: whether a checkpoint may lack the tensor, which is then initialised, like a critic's value
            head.
        order: dims of the Hugging Face tensor in the order of ours, such as (0, 2, 1) for one whose last two dims are
            swapped; empty for the same order.
        keeps_fp32: whether the tensor is saved and published in at least fp32, whatever the dtype of the others.
    """

    hf: str
    ours: str
    init_if_missing: bool = False
    order: tuple[int, ...] = ()
    keeps_fp32: bool = False

    def __post_init__(self) -> None:
        _check_placeholders(self, (self.hf,), (self.ours,))

    def links(self, shapes: Mapping[str, Shape]) -> Iterator[Link]:
        hf = NamePattern(self.hf)
        for name, bindings in _matches(self.ours, shapes):
            shape = shapes[name]
            stored = reordered(shape, _inverse(self, name, shape, self.order))
            yield Link(hf.fill(bindings), Box.whole(stored), name, Box.whole(shape), self.order)


@dataclass(frozen=True)
class Fuse:
    """Several Hugging Face tensors, one after the other along ``dim``, are one of ours.

    Attributes:
        hf: patterns in the order of concatenation.
        ours: pattern of our name, with the same placeholders.
        dim: the dim along which they are joined.
        sizes: extent of each part along ``dim``; ``None`` for equal parts.
    """

    hf: tuple[str, ...]
    ours: str
    dim: int = 0
    sizes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check_placeholders(self, self.hf, (self.ours,))

    def links(self, shapes: Mapping[str, Shape]) -> Iterator[Link]:
        for name, bindings in _matches(self.ours, shapes):
            parts = _cut(self, name, shapes[name], self.dim, len(self.hf), self.sizes)
            for pattern, box in zip(self.hf, parts, strict=True):
                yield Link(NamePattern(pattern).fill(bindings), Box.whole(box.shape), name, box)


@dataclass(frozen=True)
class Split:
    """One Hugging Face tensor holds several of ours, one after the other along ``dim``.

    Attributes:
        hf: pattern of the Hugging Face name.
        ours: patterns in the order of concatenation, with the same placeholders.
        dim: the dim along which they are joined.
    """

    hf: str
    ours: tuple[str, ...]
    dim: int = 0

    def __post_init__(self) -> None:
        _check_placeholders(self, (self.hf,), self.ours)

    def links(self, shapes: Mapping[str, Shape]) -> Iterator[Link]:
        hf = NamePattern(self.hf)
        seen = {tuple(sorted(b.items())): b for pattern in self.ours for _, b in _matches(pattern, shapes)}
        for bindings in seen.values():
            names = [NamePattern(pattern).fill(bindings) for pattern in self.ours]
            absent = [name for name in names if name not in shapes]
            if absent:
                raise WeightsError(
                    f"weight rule {self}: found some of its tensors but not {', '.join(absent)}; "
                    "all parts of a split tensor must be in the model; correct the rule"
                )
            start = 0
            for name in names:
                shape = shapes[name]
                if not 0 <= self.dim < len(shape):
                    raise WeightsError(f"weight rule {self}: {name!r} {shape} has no dim {self.dim}; fix the rule")
                others = _without(shape, self.dim)
                if others != _without(shapes[names[0]], self.dim):
                    raise WeightsError(
                        f"weight rule {self}: {name!r} {shape} and {names[0]!r} {shapes[names[0]]} differ in a dim "
                        f"other than {self.dim}; parts of one tensor must agree in all other dims; correct the rule"
                    )
                corner = tuple(start if d == self.dim else 0 for d in range(len(shape)))
                yield Link(hf.fill(bindings), Box(corner, shape), name, Box.whole(shape))
                start += shape[self.dim]


@dataclass(frozen=True)
class Interleave:
    """One Hugging Face tensor holds several of ours, whose slices take turns along ``dim``.

    Attributes:
        hf: pattern of the Hugging Face name.
        ours: patterns in the order of their slices, with the same placeholders; tensors of equal shape.
        dim: the dim of ours along which slices take turns.
        order: dims of the Hugging Face tensor in the order of ours; empty for the same order.
    """

    hf: str
    ours: tuple[str, ...]
    dim: int
    order: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_placeholders(self, (self.hf,), self.ours)

    def links(self, shapes: Mapping[str, Shape]) -> Iterator[Link]:
        hf = NamePattern(self.hf)
        for first, bindings in _matches(self.ours[0], shapes):
            names = [NamePattern(pattern).fill(bindings) for pattern in self.ours]
            shape = shapes[first]
            unequal = [f"{name!r} {shapes.get(name, 'missing')}" for name in names if shapes.get(name) != shape]
            if unequal:
                raise WeightsError(
                    f"weight rule {self}: found {first!r} {shape} and {', '.join(unequal)}; interleaved tensors have "
                    "equal shapes; correct the rule"
                )
            if not 0 <= self.dim < len(shape):
                raise WeightsError(f"weight rule {self}: {first!r} {shape} has no dim {self.dim}; fix the rule")
            back = _inverse(self, first, shape, self.order)
            step = tuple(len(names) if d == self.dim else 1 for d in range(len(shape)))
            for place, name in enumerate(names):
                corner = tuple(place if d == self.dim else 0 for d in range(len(shape)))
                box = Box(*(reordered(values, back) for values in (corner, shape, step)))
                yield Link(hf.fill(bindings), box, name, Box.whole(shape), self.order)


@dataclass(frozen=True)
class Stack:
    """Numbered Hugging Face tensors, such as those of experts, are the slices of one of ours along a new first dim.

    Attributes:
        hf: pattern, or several whose tensors are joined along ``dim`` before they are stacked.
        ours: pattern of our name, with the same placeholders except ``over``.
        over: the placeholder that counts from 0.
        dim: the dim of the Hugging Face tensors along which several are joined.
        sizes: extent of each joined part along ``dim``; ``None`` for equal parts.
    """

    hf: str | tuple[str, ...]
    ours: str
    over: str = "expert"
    dim: int = 0
    sizes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for pattern in self._parts:
            if self.over not in NamePattern(pattern).placeholders:
                raise WeightsError(
                    f"weight rule {self}: found no {{{self.over}}} in {pattern!r}; add it: it numbers the slices"
                )
        _check_placeholders(self, self._parts, (self.ours,), only_left=self.over)

    @property
    def _parts(self) -> tuple[str, ...]:
        return (self.hf,) if isinstance(self.hf, str) else self.hf

    def links(self, shapes: Mapping[str, Shape]) -> Iterator[Link]:
        for name, bindings in _matches(self.ours, shapes):
            if not shapes[name]:
                raise WeightsError(f"weight rule {self}: {name!r} has no dim to stack over; fix the rule")
            count, *rest = shapes[name]
            parts = _cut(self, name, tuple(rest), self.dim, len(self._parts), self.sizes)
            for index in range(count):
                for pattern, box in zip(self._parts, parts, strict=True):
                    hf = NamePattern(pattern).fill({**bindings, self.over: str(index)})
                    yield Link(hf, Box.whole(box.shape), name, Box((index, *box.start), (1, *box.shape)))


@dataclass(frozen=True)
class Tie:
    """One of our tensors is the same as another, so it has no separate Hugging Face tensor.

    Attributes:
        ours: pattern of the tied tensor.
        to: pattern of the stored tensor, with the same placeholders.
        hf: pattern of a second Hugging Face name. A checkpoint may hold the tensor under this name only, or under both
            names with equal values.
    """

    ours: str
    to: str
    hf: str | None = None

    def __post_init__(self) -> None:
        _check_placeholders(self, (self.to, *([self.hf] if self.hf else [])), (self.ours,))


@dataclass(frozen=True)
class Drop:
    """Hugging Face tensors that the model does not use: ignored when they are read, never written.

    Attributes:
        hf: pattern of the Hugging Face names.
        same_as: pattern of our tensor that has the same values according to the model's configuration. If a checkpoint
            lacks that tensor under its own name, it is read from this one.
        reason: why, for a decision when a checkpoint has such tensors; empty for tensors that nobody misses.
    """

    hf: str
    same_as: str | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.same_as is not None:
            _check_placeholders(self, (self.hf,), (self.same_as,))


def _matches(pattern: str, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, dict[str, str]]]:
    compiled = NamePattern(pattern)
    for name in shapes:
        bindings = compiled.match(name)
        if bindings is not None:
            yield name, bindings


def _inverse(rule: object, name: str, shape: Shape, order: tuple[int, ...]) -> tuple[int, ...]:
    """The order that undoes ``order``."""
    if order and sorted(order) != list(range(len(shape))):
        raise WeightsError(
            f"weight rule {rule}: found order {order} for {name!r} {shape}; it names each of its {len(shape)} dims once"
        )
    return tuple(map(order.index, range(len(order))))


def _without(shape: Shape, dim: int) -> Shape:
    return shape[:dim] + shape[dim + 1 :]


def _cut(rule: object, name: str, shape: Shape, dim: int, n_parts: int, sizes: tuple[int, ...] | None) -> list[Box]:
    """Split a tensor of ``shape`` into boxes along ``dim``; a single part needs no such dim."""
    if n_parts == 1 and sizes is None:
        return [Box.whole(shape)]
    if not 0 <= dim < len(shape):
        raise WeightsError(f"weight rule {rule}: {name!r} {shape} has no dim {dim}; fix the rule")
    if sizes is None:
        if shape[dim] % n_parts:
            raise WeightsError(
                f"weight rule {rule}: dim {dim} of {name!r} {shape} does not divide into {n_parts} equal parts; "
                "set their sizes"
            )
        sizes = (shape[dim] // n_parts,) * n_parts
    if len(sizes) != n_parts or sum(sizes) != shape[dim]:
        raise WeightsError(
            f"weight rule {rule}: sizes {sizes} for {n_parts} parts do not sum to dim {dim} of {name!r} {shape}; "
            "correct the sizes"
        )
    boxes, start = [], 0
    for size in sizes:
        corner = tuple(start if d == dim else 0 for d in range(len(shape)))
        boxes.append(Box(corner, shape[:dim] + (size,) + shape[dim + 1 :]))
        start += size
    return boxes


def _check_placeholders(
    rule: object, left: tuple[str, ...], right: tuple[str, ...], only_left: str | None = None
) -> None:
    additional = {only_left} - {None}
    expected = {NamePattern(pattern).placeholders for pattern in left}
    expected |= {NamePattern(pattern).placeholders | additional for pattern in right}
    clash = only_left is not None and any(only_left in NamePattern(pattern).placeholders for pattern in right)
    if not left or not right or len(expected) != 1 or clash:
        found = ", ".join(f"{p!r} {sorted(NamePattern(p).placeholders)}" for p in (*left, *right))
        raise WeightsError(
            f"weight rule {rule}: found {found or 'no names'}; both sides need the same placeholders"
            + (f", and the Hugging Face side also {{{only_left}}}" if only_left else "")
            + "; correct the names"
        )
