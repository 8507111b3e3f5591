"""Names of a model's parts in transformers and in Archon: the prefixes differ, the rest is the same."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NUMBER = re.compile(r"(?<=^layers\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class Names:
    """The names that transformers has for a model's parts.

    Attributes:
        body: the base model, in the language model.
        embed: the token embedding, in the base model.
        layers: the list of layers, in the base model.
        norm: the final norm, in the base model.
        head: the output projection, in the language model; the score of a classifier.
        others: further parts of the base model, such as rotations.
    """

    body: str
    embed: str
    layers: str
    norm: str
    head: str
    others: tuple[str, ...] = ()

    def ours(self, name: str) -> str:
        """Our name of a module or weight of the language model."""
        part, _, rest = name.partition(".")
        if part == self.head:
            return _joined("head", rest)
        assert part == self.body, f"{name} lies neither in {self.body} nor in {self.head}"
        part, _, rest = rest.partition(".")
        known = {self.embed: "embed", self.layers: "layers", self.norm: "norm"}
        return _joined(known.get(part, f"other.{part}"), rest)

    def in_body(self, name: str) -> str:
        """Our name of a module of the base model."""
        return self.ours(f"{self.body}.{name}")


def pattern_of(name: str) -> str:
    """Our name with ``{layer}`` for the layer's number, as parallel plans and weight rules write it."""
    return _NUMBER.sub("{layer}", name)


def layer_of(name: str) -> str | None:
    """The layer's number in our name; ``None`` outside of layers."""
    found = _NUMBER.search(name)
    return None if found is None else found[0]


def _joined(part: str, rest: str) -> str:
    return f"{part}.{rest}" if rest else part
