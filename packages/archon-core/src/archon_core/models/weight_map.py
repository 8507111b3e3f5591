"""The weight map: a list of rules between Hugging Face's tensors and ours, and its application to a given model.

The same list serves loading, saving and publication. A model package writes a ``WeightMap``; ``resolve`` applies it to
the shapes of a whole model and returns the links that all other code uses. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from archon_core.errors import WeightsError
from archon_core.models.box import Box, Link, Shape
from archon_core.models.encoded import Encoded, EncodedTensor
from archon_core.models.name_pattern import NamePattern
from archon_core.models.weight_rules import Drop, Fuse, Interleave, Rename, Rule, Split, Stack, Tie

__all__ = ["Drop", "Encoded", "Fuse", "Interleave", "Rename", "ResolvedMap", "Split", "Stack", "Tie", "WeightMap"]


@dataclass(frozen=True)
class ResolvedMap:
    """A weight map applied to a model.

    Attributes:
        shapes: our name -> shape of the whole tensor.
        hf_shapes: Hugging Face name -> shape, in the order of our tensors.
        links_of_ours: our name -> links that cover it; for a tied tensor, those of the stored one.
        links_of_hf: Hugging Face name -> links that cover it, from stored tensors only.
        ties: our name of a tied tensor -> our name of the stored one.
        copies: Hugging Face name of a permitted second copy -> our name of the tensor that it must equal.
        initialised_if_missing: Hugging Face names that a checkpoint may lack.
        dropped: pattern of Hugging Face names that are ignored -> why, for a decision; empty without one.
        stand_ins: Hugging Face name -> our name of the tensor that is read from it when a checkpoint does not store
            the tensor under its own name.
        alternatives: resolved maps of other forms of checkpoints, for reading only.
        encoded: Hugging Face name -> the tensors that files hold instead, for reading only.
        kept_in_fp32: Hugging Face names that are saved and published in at least fp32.
    """

    shapes: Mapping[str, Shape]
    hf_shapes: Mapping[str, Shape]
    links_of_ours: Mapping[str, tuple[Link, ...]]
    links_of_hf: Mapping[str, tuple[Link, ...]]
    ties: Mapping[str, str]
    copies: Mapping[str, str]
    initialised_if_missing: frozenset[str]
    dropped: Mapping[str, str]
    alternatives: tuple[ResolvedMap, ...] = ()
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    encoded: Mapping[str, EncodedTensor] = field(default_factory=dict)
    kept_in_fp32: frozenset[str] = frozenset()

    @cached_property
    def stored_shapes(self) -> dict[str, Shape]:
        """Name -> shape of the tensors that files hold: those of ``hf_shapes``, or the ones that encode them."""
        found: dict[str, Shape] = {}
        for name, shape in self.hf_shapes.items():
            found |= self.encoded[name].stored if name in self.encoded else {name: shape}
        return found

    @cached_property
    def _dropped(self) -> tuple[NamePattern, ...]:
        return tuple(NamePattern(pattern) for pattern in self.dropped)

    @cached_property
    def stored(self) -> frozenset[str]:
        """Our names of the tensors that are stored: all but tied ones."""
        return frozenset(self.shapes) - frozenset(self.ties)

    def drops(self, hf_name: str) -> bool:
        """Whether a checkpoint's tensor of this name is ignored."""
        return any(pattern.match(hf_name) is not None for pattern in self._dropped)

    def dropped_with_reason(self, found: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """The tensors among ``found`` that a rule drops for a reason, by that reason."""
        rules = [(NamePattern(hf), reason) for hf, reason in self.dropped.items() if reason]
        names: dict[str, list[str]] = {}
        for name in found:
            for pattern, reason in rules:
                if pattern.match(name) is not None:
                    names.setdefault(reason, []).append(name)
        return {reason: tuple(dropped) for reason, dropped in names.items()}

    def links_in(self, ours: str, box: Box) -> list[Link]:
        """Links that cover ``box`` of our tensor, clipped to it."""
        clipped = [link.clipped_to_ours(box) for link in self.links_of_ours[ours]]
        return [link for link in clipped if link is not None]

    def for_reading(self, found: Collection[str]) -> ResolvedMap:
        """The map for a checkpoint with these tensors. If a tied weight is stored only under its second name, such as
        ``lm_head.weight`` without ``model.embed_tokens.weight``, it is read from there, as in transformers 5."""
        result = self
        for hf, ours in self.stand_ins.items():
            own_names = {link.hf for link in result.links_of_ours[ours]}
            if hf in found and own_names.isdisjoint(found):
                result = result._read_from(hf, ours)
        return result

    def _read_from(self, hf: str, ours: str) -> ResolvedMap:
        shape = self.shapes[ours]
        replaced = {link.hf for link in self.links_of_ours[ours]}
        names = (ours, *(tied for tied, stored in self.ties.items() if stored == ours))
        links = {name: (Link(hf, Box.whole(shape), name, Box.whole(shape)),) for name in names}
        kept = {name: found for name, found in self.hf_shapes.items() if name not in replaced}
        return replace(
            self,
            hf_shapes={hf: shape, **kept},
            links_of_ours={**self.links_of_ours, **links},
            links_of_hf={hf: links[ours], **{name: self.links_of_hf[name] for name in kept}},
            copies={name: stored for name, stored in self.copies.items() if name != hf},
        )


@dataclass(frozen=True)
class WeightMap:
    """Rules that together cover every weight of a model.

    Attributes:
        rules: the rules, in any order. They describe the form in which checkpoints are saved.
        alternatives: maps for other forms of the same model's checkpoints, such as fused experts. The names in a
            checkpoint decide which map reads it (``key_report.form_of``).
    """

    rules: tuple[Rename | Fuse | Split | Interleave | Stack | Tie | Drop | Encoded, ...]
    alternatives: tuple[WeightMap, ...] = ()

    def resolve(self, shapes: Mapping[str, Shape]) -> ResolvedMap:
        """Apply the rules to a whole model, all pipeline stages together.

        Args:
            shapes: our name -> shape of the whole, unsharded tensor, in the order of saving. A tied tensor may be
                listed or left out.

        Raises:
            WeightsError: a rule covers nothing, two rules claim the same tensor, or a tensor has no rule; the message
                lists all of these.
        """
        shapes = {name: tuple(shape) for name, shape in shapes.items()}
        problems: list[str] = []
        ties, copies = self._resolve_ties(shapes, problems)
        stand_ins = self._resolve_stand_ins(shapes, problems)
        claims: dict[str, list[Rule]] = {name: [] for name in shapes if name not in ties}
        hf_claims: dict[str, Rule] = {}
        links: list[Link] = []
        optional: set[str] = set()
        wide: set[str] = set()
        for rule in self.rules:
            if isinstance(rule, Tie | Drop | Encoded):
                continue
            made = list(rule.links(shapes))
            if not made:
                problems.append(f"{rule} covers no tensor of the model")
            links += made
            for name in dict.fromkeys(link.ours for link in made):
                if name in ties:
                    problems.append(f"{name!r} is claimed by {rule} and tied to {ties[name]!r}")
                else:
                    claims[name].append(rule)
            for name in dict.fromkeys(link.hf for link in made):
                if name in hf_claims:
                    problems.append(f"Hugging Face tensor {name!r} is claimed by {hf_claims[name]} and {rule}")
                hf_claims[name] = rule
            if isinstance(rule, Rename) and rule.init_if_missing:
                optional.update(link.hf for link in made)
            if isinstance(rule, Rename) and rule.keeps_fp32:
                wide.update(link.hf for link in made)
        problems += [f"{name!r} is claimed by {_listed(rules)}" for name, rules in claims.items() if len(rules) > 1]
        problems += [f"{name!r} {shapes[name]} has no rule" for name, rules in claims.items() if not rules]
        problems += [f"Hugging Face tensor {name!r} is claimed twice" for name in copies if name in hf_claims]
        if problems:
            raise WeightsError(
                "the weight map does not fit the model; every tensor needs one rule, and every rule a tensor:\n  "
                + "\n  ".join(problems)
            )
        built = _build(shapes, links, ties, copies, frozenset(optional), self._dropped)
        built = replace(
            built,
            stand_ins={**copies, **stand_ins},
            encoded=self._resolve_encoded(built.hf_shapes),
            kept_in_fp32=frozenset(wide),
        )
        return replace(built, alternatives=tuple(other.resolve(shapes) for other in self.alternatives))

    @property
    def _dropped(self) -> dict[str, str]:
        return {rule.hf: rule.reason for rule in self.rules if isinstance(rule, Drop)}

    def _resolve_encoded(self, hf_shapes: Mapping[str, Shape]) -> dict[str, EncodedTensor]:
        encoded: dict[str, EncodedTensor] = {}
        for rule in self.rules:
            if not isinstance(rule, Encoded):
                continue
            tensors = {name: found for name, shape in hf_shapes.items() if (found := rule.tensor(name, shape))}
            if not tensors or not tensors.keys().isdisjoint(encoded):
                problem = "covers a tensor of another rule too" if tensors else "covers no tensor of the model"
                raise WeightsError(f"weight rule {rule} {problem}; correct the names")
            encoded |= tensors
        return encoded

    def _resolve_ties(self, shapes: Mapping[str, Shape], problems: list[str]) -> tuple[dict[str, str], dict[str, str]]:
        ties: dict[str, str] = {}
        copies: dict[str, str] = {}
        for rule in self.rules:
            if not isinstance(rule, Tie):
                continue
            follower = NamePattern(rule.ours)
            stored = [(name, found) for name in shapes if (found := NamePattern(rule.to).match(name)) is not None]
            if not stored:
                problems.append(f"{rule} covers no tensor of the model")
            for name, bindings in stored:
                tied = follower.fill(bindings)
                if tied in shapes:
                    ties[tied] = name
                    if shapes[tied] != shapes[name]:
                        problems.append(f"{tied!r} {shapes[tied]} is tied to {name!r} {shapes[name]}: shapes differ")
                if rule.hf is not None:
                    copies[NamePattern(rule.hf).fill(bindings)] = name
        return ties, copies

    def _resolve_stand_ins(self, shapes: Mapping[str, Shape], problems: list[str]) -> dict[str, str]:
        stand_ins: dict[str, str] = {}
        for rule in self.rules:
            if not isinstance(rule, Drop) or rule.same_as is None:
                continue
            ours = NamePattern(rule.same_as)
            found = [(name, bindings) for name in shapes if (bindings := ours.match(name)) is not None]
            if not found:
                problems.append(f"{rule} covers no tensor of the model")
            stand_ins |= {NamePattern(rule.hf).fill(bindings): name for name, bindings in found}
        return stand_ins


def _build(
    shapes: Mapping[str, Shape],
    links: Iterable[Link],
    ties: Mapping[str, str],
    copies: Mapping[str, str],
    optional: frozenset[str],
    dropped: Mapping[str, str],
) -> ResolvedMap:
    of_ours: dict[str, list[Link]] = {name: [] for name in shapes}
    of_hf: dict[str, list[Link]] = {}
    for link in links:
        of_ours[link.ours].append(link)
        of_hf.setdefault(link.hf, []).append(link)
    hf_order = dict.fromkeys(link.hf for name in shapes for link in of_ours[name])
    for tied, stored in ties.items():
        of_ours[tied] = [Link(link.hf, link.hf_box, tied, link.our_box) for link in of_ours[stored]]
    return ResolvedMap(
        shapes=dict(shapes),
        hf_shapes={name: _extent(of_hf[name]) for name in hf_order},
        links_of_ours={name: tuple(found) for name, found in of_ours.items()},
        links_of_hf={name: tuple(of_hf[name]) for name in hf_order},
        ties=dict(ties),
        copies=dict(copies),
        initialised_if_missing=optional,
        dropped=dropped,
    )


def _extent(links: Iterable[Link]) -> Shape:
    return tuple(map(max, zip(*(link.hf_box.stop for link in links), strict=True)))


def _listed(rules: Iterable[Rule]) -> str:
    return " and ".join(map(str, rules))
