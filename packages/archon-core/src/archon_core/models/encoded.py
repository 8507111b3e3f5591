"""Quantised checkpoints: a tensor that files hold as several others, such as codes and scales.

A weight map of a quantised form has the rules of the plain form, in which Hugging Face tensors are weights, and an
``Encoded`` rule for each kind of tensor that files store otherwise. A slice is decoded from the slices of the stored
tensors that it depends on, so a rank reads only what it holds. Encoded forms are read, never written. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from archon_core.errors import WeightsError
from archon_core.models.box import Box, Shape
from archon_core.models.name_pattern import NamePattern


class Encoding(Protocol):
    """How several stored tensors encode one; ``archon_engine.models.encodings`` has implementations."""

    def shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """Shapes of the stored tensors of a tensor of ``shape``.

        Raises:
            WeightsError: no tensor of this shape can be encoded.
        """

    def boxes(self, box: Box) -> tuple[Box, ...]:
        """The boxes of the stored tensors on which ``box``, which may have steps, depends."""

    def decode(self, parts: Sequence[Any], box: Box) -> Any:
        """The elements of ``box``, in the shape of the box, from those of ``boxes(box)``."""


@dataclass(frozen=True)
class Encoded:
    """A rule of a weight map: a Hugging Face tensor that files hold as several others.

    Attributes:
        hf: pattern of the name that the tensor has in the other rules.
        stored: patterns of the stored tensors' names, with the same placeholders, in the order of ``encoding``. One may
            be ``hf`` itself.
        encoding: how they encode it.
    """

    hf: str
    stored: tuple[str, ...]
    encoding: Encoding

    def __post_init__(self) -> None:
        placeholders = {NamePattern(pattern).placeholders for pattern in (self.hf, *self.stored)}
        if not self.stored or len(placeholders) != 1:
            raise WeightsError(
                f"weight rule {self}: found stored names {self.stored}; give at least one, with the placeholders of "
                f"{self.hf!r}"
            )

    def tensor(self, hf_name: str, shape: Shape) -> EncodedTensor | None:
        """The stored form of a tensor; ``None`` if the rule does not cover this name.

        Raises:
            WeightsError: the encoding has no tensors of this shape.
        """
        bindings = NamePattern(self.hf).match(hf_name)
        if bindings is None:
            return None
        names = (NamePattern(pattern).fill(bindings) for pattern in self.stored)
        return EncodedTensor(dict(zip(names, self.encoding.shapes(shape), strict=True)), self.encoding)


@dataclass(frozen=True)
class EncodedTensor:
    """The stored form of one tensor.

    Attributes:
        stored: name -> shape of the stored tensors, in the order of ``encoding``.
        encoding: how they encode it.
    """

    stored: dict[str, Shape]
    encoding: Encoding

    def read(self, box: Box, read_stored: Callable[[str, Box], Any]) -> Any:
        """The elements of ``box``, from slices of the stored tensors."""
        boxes = zip(self.stored, self.encoding.boxes(box), strict=True)
        return self.encoding.decode([read_stored(name, part) for name, part in boxes], box)
