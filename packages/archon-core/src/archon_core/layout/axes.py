"""The letters of the layout grammar and their sizes in a layout."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

AXIS_NAMES = {
    "d": "data parallelism",
    "t": "tensor parallelism",
    "p": "pipeline parallelism",
    "c": "context parallelism",
    "e": "expert parallelism",
    "r": "HSDP replication",
}

RANK_LETTERS = "dtpcr"
"""The letters whose sizes multiply to the world size. ``e`` adds no ranks."""

MAX_SIZE = 999_999
"""Largest size in the grammar: above any cluster, and small enough for a fast search of nearby layouts."""


def list_letters(letters: str) -> str:
    """Write ``"dtc"`` as ``"d, t, c"``."""
    return ", ".join(letters)


@dataclass(frozen=True)
class AxisSizes:
    """Letters with sizes, in written order. A missing letter has size 1.

    Attributes:
        pairs: letters, each once, with sizes of at least 1.
    """

    pairs: tuple[tuple[str, int], ...] = ()

    def __getitem__(self, letter: str) -> int:
        return dict(self.pairs).get(letter, 1)

    def __contains__(self, letter: object) -> bool:
        return any(written == letter for written, _ in self.pairs)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self.pairs)

    def __bool__(self) -> bool:
        return bool(self.pairs)

    def __str__(self) -> str:
        return "".join(f"{letter}{size}" for letter, size in self.pairs)

    def product(self, letters: str) -> int:
        """The product of the sizes of ``letters``."""
        return math.prod(self[letter] for letter in letters)

    def resized(self, letter: str, size: int) -> AxisSizes:
        """The sizes with one changed. A missing letter is added, data axes in front."""
        if self[letter] == size:
            return self
        if letter not in self:
            added = ((letter, size),)
            return AxisSizes(added + self.pairs if letter in "dr" else self.pairs + added)
        return AxisSizes(tuple((known, size if known == letter else old) for known, old in self.pairs))

    def without(self, letters: str) -> AxisSizes:
        """The sizes without ``letters``; ``d1`` if nothing is left."""
        kept = tuple((letter, size) for letter, size in self.pairs if letter not in letters)
        return AxisSizes(kept or (("d", 1),))
