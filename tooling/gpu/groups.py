"""The groups of checks, each run in a separate process, most valuable first."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from gpu.records import Check, Context


@dataclass(frozen=True)
class Group:
    """Checks that share a process.

    Attributes:
        name: ``part.name``.
        modules: each has a function ``checks(context)`` that yields them.
        seconds: for all of them on a GPU, when everything runs within ``TIME_LIMIT``.
        check_limit: for one of them on a GPU, so that one that hangs leaves the others some time. It may be longer than
            ``seconds``, since earlier groups may leave some, and grows with ``time_factor``.
        has_reference: whether they are compared with ``gpu.numerics.oracle``.
    """

    name: str
    modules: tuple[str, ...]
    seconds: int
    check_limit: int
    has_reference: bool = False

    @property
    def part(self) -> str:
        """``numbers``, ``speed`` or ``trace``."""
        return self.name.partition(".")[0]

    def checks(self, context: Context) -> Iterator[Check]:
        """All checks of the group, in order."""
        for module in self.modules:
            yield from importlib.import_module(f"gpu.{FOLDERS[self.part]}.{module}").checks(context)


GROUPS = (
    Group("numbers.kernels", ("attention", "head", "experts"), 35, 25),
    Group("numbers.engine", ("engine",), 50, 40, has_reference=True),
    Group("speed.dense", ("dense",), 120, 90),
    Group("numbers.ranks", ("ranks",), 50, 40, has_reference=True),
    Group("trace.dense", ("step",), 35, 50),
    Group("numbers.state", ("state", "generation"), 35, 25, has_reference=True),
    Group("numbers.options", ("options",), 55, 50, has_reference=True),
    Group("speed.experts", ("experts",), 40, 60),
    Group("speed.generation", ("generation",), 25, 30),
    Group("numbers.flex", ("flex",), 20, 25),
)

START_UP = 15
"""Seconds before the first group: torch is imported for the first time."""

TIME_LIMIT = START_UP + sum(group.seconds for group in GROUPS)
"""Seconds for everything on a GPU: eight minutes."""

FOLDERS = {"numbers": "numerics", "speed": "speed", "trace": "tracing"}
"""Part -> the package of its modules. ``numbers`` and ``trace`` are names of the standard library."""

PARTS = tuple(FOLDERS)


def ends_of(groups: Sequence[Group], begin: float, end: float) -> list[float]:
    """When each of ``groups``, run one after the other between two times, has to end.

    A group also has the time that those before it leave, and never takes any from those after it.
    """
    whole = sum(group.seconds for group in groups)
    return [begin + (end - begin) * used / whole for used in accumulate(group.seconds for group in groups)]


def time_factor(groups: Sequence[Group], begin: float, end: float) -> float:
    """How many times their ``seconds`` the ``groups`` have between two times; at least 1."""
    return max(1.0, (end - begin) / sum(group.seconds for group in groups))
