"""``archon plan``."""

from __future__ import annotations


def plan() -> None:
    """Predict memory, traffic and time of a layout."""
    raise NotImplementedError
