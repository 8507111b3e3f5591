"""Moves that keep the active rows of a batch a prefix when some of them end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Moves:
    """Moves that close the gaps of finished rows: row ``sources[i]`` to ``destinations[i]``; ``n_left`` rows remain."""

    sources: tuple[int, ...]
    destinations: tuple[int, ...]
    n_left: int


def plan_moves(finished: Sequence[bool]) -> Moves:
    """Fill the gaps of finished rows with the last active rows, with as few moves as possible."""
    n_left = len(finished) - sum(finished)
    holes = tuple(row for row in range(n_left) if finished[row])
    behind = tuple(row for row in range(n_left, len(finished)) if not finished[row])
    return Moves(sources=behind, destinations=holes, n_left=n_left)
