"""The held-out groups of one evaluation: which of them wait, are being sampled, or are settled."""

from __future__ import annotations

from collections.abc import Mapping

from archon_rl.collector.group import Group
from archon_rl.collector.window import Settled


class Evaluation:
    """The groups of one evaluation. Pure: knows places and outcomes, as ``GroupWindow`` does of training.

    Args:
        n_records: evaluates the first ones of the data set.
    """

    def __init__(self, n_records: int) -> None:
        self._n_records = n_records
        self._next = 0
        self._settled: dict[int, Settled[Group]] = {}

    @property
    def n_running(self) -> int:
        """Number of groups that are being sampled."""
        return self._next - len(self._settled)

    @property
    def has_started_all(self) -> bool:
        """Whether no group waits for its start."""
        return self._next == self._n_records

    def start(self) -> int | None:
        """The place of the record to sample now; ``None`` if all have started."""
        if self.has_started_all:
            return None
        self._next += 1
        return self._next - 1

    def settle(self, place: int, outcome: Settled[Group]) -> None:
        """A group is no longer sampled."""
        self._settled[place] = outcome

    def groups(self) -> Mapping[int, Settled[Group]] | None:
        """The groups by place, in order; ``None`` while one is missing."""
        if len(self._settled) < self._n_records:
            return None
        return dict(sorted(self._settled.items()))
