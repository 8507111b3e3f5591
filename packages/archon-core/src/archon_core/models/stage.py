"""The pipeline stage of a decoder: the part that a process holds, or all of it without pipeline parallelism."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A pipeline stage of a decoder.

    Attributes:
        layers: indices of its layers in the whole model, ascending.
        has_embed: whether it contains the embedding, so that its input is token ids.
        has_head: whether it contains the final norm and the head.
    """

    layers: tuple[int, ...]
    has_embed: bool
    has_head: bool

    @classmethod
    def whole(cls, n_layers: int) -> Stage:
        """The only stage of a model that is not split."""
        return cls(tuple(range(n_layers)), has_embed=True, has_head=True)
