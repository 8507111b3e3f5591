"""The groups of checks, each run in a separate process, most valuable first."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass

from gpu.records import Check, Context


@dataclass(frozen=True)
class Group:
    """Checks that share a process.

    Attributes:
        name: ``part.name``.
        modules: each has a function ``checks(context)`` that yields them.
        limit: most seconds that they may take together.
    """

    name: str
    modules: tuple[str, ...]
    limit: float

    @property
    def part(self) -> str:
        """``numbers``, ``speed`` or ``trace``."""
        return self.name.partition(".")[0]

    def checks(self, context: Context) -> Iterator[Check]:
        """All checks of the group, in order."""
        for module in self.modules:
            yield from importlib.import_module(f"gpu.{FOLDERS[self.part]}.{module}").checks(context)


GROUPS = (
    Group("numbers.kernels", ("attention", "head", "experts", "flex"), 120),
    Group("numbers.engine", ("engine",), 90),
    Group("speed.dense", ("dense",), 120),
    Group("numbers.options", ("options",), 140),
    Group("numbers.ranks", ("ranks",), 75),
    Group("numbers.state", ("state", "generation"), 75),
    Group("speed.experts", ("experts",), 90),
    Group("speed.generation", ("generation",), 60),
    Group("trace.dense", ("step",), 60),
)

FOLDERS = {"numbers": "numerics", "speed": "speed", "trace": "tracing"}
"""Part -> the package of its modules. ``numbers`` and ``trace`` are names of the standard library."""

PARTS = tuple(FOLDERS)
