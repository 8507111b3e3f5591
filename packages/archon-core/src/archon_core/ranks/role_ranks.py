"""The ranks of a trainer by role: the actor's come first, then those of each separated role. Pure; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ACTOR = "actor"


@dataclass(frozen=True)
class RoleRanks:
    """Consecutive ranks of the trainer that run the same models.

    Attributes:
        role: the role whose layout they have: the actor, or a role with ``scheduling_strategy.type: separation``.
        roles: all roles that they run: ``role``, and those colocated with it.
        first: the first rank.
        size: number of ranks.
    """

    role: str
    roles: tuple[str, ...]
    first: int
    size: int

    @property
    def ranks(self) -> range:
        """The ranks."""
        return range(self.first, self.first + self.size)


def ranks_of(rank: int, trainer: Sequence[RoleRanks]) -> RoleRanks:
    """The member of ``trainer`` that ``rank`` belongs to."""
    return next(part for part in trainer if rank in part.ranks)
