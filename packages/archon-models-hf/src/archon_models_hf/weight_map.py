"""Weight rules between transformers' checkpoints and our weights: prefixes, and tensors whose stored form differs from
the one in memory, such as experts that are stored one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from archon_core.models.box import Box, Link, Shape
from archon_core.models.name_pattern import NamePattern
from archon_core.models.weight_map import WeightMap
from archon_core.models.weight_rules import Drop, Rename, Tie
from archon_models_hf.arguments import HfArguments
from archon_models_hf.stored_form import Forms, StoredSlice, stored_forms


@dataclass(frozen=True)
class Assemble:
    """A weight rule: one of our tensors is assembled from slices that are stored as tensors.

    Attributes:
        ours: pattern of our name.
        slices: the stored tensors, with patterns that have the same placeholders.
    """

    ours: str
    slices: tuple[StoredSlice, ...]

    def links(self, shapes: Mapping[str, Shape]) -> Iterator[Link]:
        """Links for every name in ``shapes`` that the rule covers."""
        ours = NamePattern(self.ours)
        for name in shapes:
            bindings = ours.match(name)
            if bindings is not None:
                for part in self.slices:
                    hf = NamePattern(part.name).fill(bindings)
                    yield Link(hf, Box.whole(part.shape), name, part.box)


def weight_map(arguments: HfArguments) -> WeightMap:
    """The rules for a model of these arguments: saved as transformers saves, read in the form of its memory too."""
    stored, in_memory, stored_head = stored_forms(arguments)
    head = f"{arguments.facts.names.head}.weight"
    saved = (*_rules(stored), *_outside_layers(arguments, stored_head))
    as_kept = (*_rules(in_memory), *_outside_layers(arguments, head))
    return WeightMap(saved, alternatives=() if saved == as_kept else (WeightMap(as_kept),))


def _rules(forms: Forms) -> list[Rename | Assemble]:
    return [_rule(ours, slices) for ours, slices in forms.items()]


def _outside_layers(arguments: HfArguments, head: str) -> list[Tie | Drop | Rename]:
    """The head, stored as ``head``, and constants that checkpoints of old versions of transformers hold."""
    facts, names = arguments.facts, arguments.facts.names
    rules: list[Tie | Drop | Rename] = []
    if arguments.critic:
        rules.append(Rename(head, "head.weight", init_if_missing=True))
        # Heads of causal models. A tied one has the embedding's values, and may be the only one that is stored.
        same_as = "embed.weight" if arguments.config.tie_word_embeddings else None
        others = ("lm_head", "embed_out", "output_projection")
        rules += [Drop(f"{other}.weight", same_as=same_as) for other in others if f"{other}.weight" != head]
    elif facts.tied:
        rules.append(Tie("head.weight", to="embed.weight", hf=head))
    else:
        rules.append(Rename(head, "head.weight"))
    layer = f"{names.body}.{names.layers}.{{layer}}"
    module = facts.attention[0].module
    rules += [Drop(f"{layer}.{module}.rotary_emb.inv_freq"), Drop(f"{names.body}.rotary_emb.inv_freq")]
    rules += [Drop(f"{layer}.{module}.masked_bias")]
    return rules


def _rule(ours: str, slices: tuple[StoredSlice, ...]) -> Rename | Assemble:
    [first, *others] = slices
    return Assemble(ours, slices) if others or first.shape != first.box.shape else Rename(first.name, ours)
