"""A violated constraint, and what a check of an engine finds."""

from __future__ import annotations

from dataclasses import dataclass

from archon_core.contracts.model import ModelSpec
from archon_core.layout import Layout, ParallelDims
from archon_core.models.anatomy import ModelAnatomy
from archon_plan.parts import Parts

MANY = 12
"""Most sizes that a message lists."""


@dataclass(frozen=True)
class Violation:
    """A violated constraint.

    Attributes:
        option: the option with the wrong value.
        found: what is wrong, as a noun phrase.
        allowed: the rule, or the allowed values.
        fix: what to write, if the message knows more than the nearest layouts; empty otherwise.
        marks: the layout and carets below the wrong place, as two lines; empty for other options.
        suggestions: layouts that may be meant. They may violate other constraints.
    """

    option: str
    found: str
    allowed: str = ""
    fix: str = ""
    marks: str = ""
    suggestions: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.option}: found {self.found}"]
        parts += [f"allowed: {self.allowed}"] if self.allowed else []
        parts += [f"fix: {self.fix}"] if self.fix else []
        return "; ".join(parts)


@dataclass(frozen=True)
class Check:
    """What the constraints of an engine say.

    Attributes:
        violations: all that were found; a layout that cannot be parsed hides those of the model.
        parts: of the engine; ``None`` if some could not be found.
        dims: sizes of all axes; ``None`` if they contradict each other.
        layout: the parsed layout, even if its sizes contradict each other.
        model: the model's spec; ``None`` if it could not be found.
        anatomy: of the model, likewise.
    """

    violations: tuple[Violation, ...]
    parts: Parts | None = None
    dims: ParallelDims | None = None
    layout: Layout | None = None
    model: ModelSpec | None = None
    anatomy: ModelAnatomy | None = None


def divisors(number: int) -> str:
    """The divisors of a number, as text; the powers of two if there are many."""
    found = [size for size in range(1, number + 1) if number % size == 0]
    if len(found) > MANY:
        found = [size for size in found if size & (size - 1) == 0]
        return f"{', '.join(map(str, found))} and others"
    return ", ".join(map(str, found))
