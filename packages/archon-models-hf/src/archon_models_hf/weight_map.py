"""The rules between transformers' checkpoints and our weights: prefixes, and the forms in which transformers stores
what it keeps differently in memory, such as experts one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from archon_core.models.box import Box, Link, Shape
from archon_core.models.name_pattern import NamePattern
from archon_core.models.weight_map import WeightMap
from archon_core.models.weight_rules import Drop, Rename, Tie
from archon_models_hf.arguments import HfArguments
from archon_models_hf.stored_form import Piece, stored_pieces


@dataclass(frozen=True)
class Pieces:
    """One of our tensors is made of several stored ones.

    Attributes:
        ours: pattern of our name.
        pieces: the stored ones, with patterns that have the same placeholders.
    """

    ours: str
    pieces: tuple[Piece, ...]

    def links(self, shapes: Mapping[str, Shape]) -> Iterator[Link]:
        """Links for every name in ``shapes`` that the rule covers."""
        ours = NamePattern(self.ours)
        for name in shapes:
            bindings = ours.match(name)
            if bindings is not None:
                for piece in self.pieces:
                    hf = NamePattern(piece.name).fill(bindings)
                    yield Link(hf, Box.whole(piece.shape), name, piece.box)


def weight_map(arguments: HfArguments) -> WeightMap:
    """The rules for a model of these arguments: saved as transformers saves, read in the form of its memory too."""
    facts, names = arguments.facts, arguments.facts.names
    stored, in_memory = stored_pieces(arguments)
    shared: list[Tie | Drop | Rename] = []
    head = f"{names.head}.weight"
    if arguments.critic:
        shared += [Rename(head, "head.weight", init_if_missing=True), Drop("lm_head.weight")]
        shared += [Drop(f"{other}.weight") for other in ("embed_out", "output_projection") if other != names.head]
    elif facts.tied:
        shared.append(Tie("head.weight", to="embed.weight", hf=head))
    else:
        shared.append(Rename(head, "head.weight"))
    # Constants that checkpoints of old versions of transformers hold.
    layer = f"{names.body}.{names.layers}.{{layer}}"
    module = facts.attention[0].module
    shared += [Drop(f"{layer}.{module}.rotary_emb.inv_freq"), Drop(f"{names.body}.rotary_emb.inv_freq")]
    shared += [Drop(f"{layer}.{module}.masked_bias")]
    saved = tuple(rule for rule in (_rule(ours, pieces) for ours, pieces in stored.items()))
    as_kept = tuple(rule for rule in (_rule(ours, pieces) for ours, pieces in in_memory.items()))
    alternatives = () if saved == as_kept else (WeightMap((*as_kept, *shared)),)
    return WeightMap((*saved, *shared), alternatives=alternatives)


def _rule(ours: str, pieces: tuple[Piece, ...]) -> Rename | Pieces:
    [first, *others] = pieces
    return Pieces(ours, pieces) if others or first.shape != first.box.shape else Rename(first.name, ours)
