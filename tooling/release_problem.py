"""The error of the release tools: everything that stands in a release's way, at once."""

from __future__ import annotations

from collections.abc import Sequence


class ReleaseError(Exception):
    """A release cannot be made.

    Attributes:
        problems: what was found, what is allowed and what mends it, one text each.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems: Sequence[str] = problems
