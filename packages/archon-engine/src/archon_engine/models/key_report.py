"""Compares the tensors of a checkpoint with the ones a model expects, and reports differences in a few lines.

In the wrong checkpoint for a large model hundreds of names are wrong, nearly all of one form, so names that differ only
in numbers share a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from archon_core.models.box import Shape
from archon_core.models.weight_map import ResolvedMap

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True)
class KeyReport:
    """Differences between the tensors found and expected, by Hugging Face names.

    Attributes:
        missing: expected, but not found.
        unexpected: found, neither expected nor dropped.
        misshapen: name -> (shape found, shape expected).
        initialised: not found, but allowed to be missing; they are drawn at random.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: Mapping[str, tuple[Shape, Shape]]
    initialised: tuple[str, ...]

    @property
    def n_differences(self) -> int:
        """The number of names that prevent loading."""
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    @property
    def fits(self) -> bool:
        """Whether the checkpoint can be loaded."""
        return self.n_differences == 0

    def lines(self) -> list[str]:
        """One line per kind of difference and form of name."""
        by_shapes: dict[tuple[Shape, Shape], list[str]] = {}
        for name, shapes in self.misshapen.items():
            by_shapes.setdefault(shapes, []).append(name)
        lines = [f"missing     {line}" for line in summarise_names(self.missing)]
        lines += [f"unexpected  {line}" for line in summarise_names(self.unexpected)]
        for (found, expected), names in by_shapes.items():
            lines += [f"misshapen   {line}: found {found}, expected {expected}" for line in summarise_names(names)]
        return lines


def compare_keys(weights: ResolvedMap, found: Mapping[str, Shape]) -> KeyReport:
    """Compare a checkpoint's tensor shapes with what ``weights`` expects."""
    expected = weights.stored_shapes
    copies = {name: weights.shapes[ours] for name, ours in weights.copies.items() if name in found}
    known = {**expected, **copies}
    absent = [name for name in expected if name not in found]
    return KeyReport(
        missing=tuple(name for name in absent if name not in weights.initialised_if_missing),
        unexpected=tuple(name for name in found if name not in known and not weights.drops(name)),
        misshapen={
            name: (tuple(found[name]), shape)
            for name, shape in known.items()
            if name in found and tuple(found[name]) != shape
        },
        initialised=tuple(name for name in absent if name in weights.initialised_if_missing),
    )


def form_of(found: Mapping[str, Shape], weights: ResolvedMap) -> tuple[ResolvedMap, KeyReport]:
    """Choose one of the forms that ``weights`` knows for a checkpoint: the one that fits, or else differs least.

    A tied weight that is stored only under its second name is read from there.

    Args:
        found: the checkpoint's tensors and their shapes.
        weights: the form in which the model is saved, and its alternatives.
    """
    forms = [form.for_reading(found) for form in (weights, *weights.alternatives)]
    compared = [(form, compare_keys(form, found)) for form in forms]
    return min(compared, key=lambda pair: pair[1].n_differences)


def summarise_names(names: Iterable[str]) -> list[str]:
    """One line for all names that differ only in numbered segments: ``layers.*.weight (28: 0 to 27)``."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_NUMBER.sub("*", name), []).append(name)
    return [f"{form} ({len(group)}: {_span(group)})" if len(group) > 1 else group[0] for form, group in groups.items()]


def _span(names: list[str]) -> str:
    """Lowest and highest number per numbered segment."""
    columns = zip(*(_NUMBER.findall(name) for name in names), strict=True)
    return ", ".join(f"{min(column, key=_by_value)} to {max(column, key=_by_value)}" for column in columns)


def _by_value(digits: str) -> tuple[int, str]:
    """Orders numbers of any length; ``int`` refuses a text of more than 4,300 digits."""
    plain = digits.lstrip("0")
    return len(plain), plain
