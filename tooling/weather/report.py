"""The result of the checks of a storm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """The result of the checks.

    Attributes:
        problems: what went wrong; empty if nothing did.
        counts: what was checked.
    """

    problems: tuple[str, ...]
    counts: Mapping[str, int]

    def summary(self) -> str:
        """One line."""
        verdict = "survived" if not self.problems else f"{len(self.problems)} problems"
        return f"{verdict}; " + ", ".join(f"{n} {what}" for what, n in self.counts.items())
