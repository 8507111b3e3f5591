"""Which part of a decoder a process holds. Without pipeline parallelism: all of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A pipeline stage of a decoder.

    Attributes:
        layers: numbers of its layers, counted over the whole model, in ascending order.
        has_embed: whether token ids come in here.
        has_head: whether the final norm and the head are here.
    """

    layers: tuple[int, ...]
    has_embed: bool
    has_head: bool

    @classmethod
    def whole(cls, n_layers: int) -> Stage:
        """The only stage of a model that is not split."""
        return cls(tuple(range(n_layers)), has_embed=True, has_head=True)
