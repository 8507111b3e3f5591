"""Which groups belong to which training step: a pure function of their outcomes, in the order in which they started.

A step takes ``batch_size`` groups. Where a filter rejects groups, it takes further ones in their place, for at most
``max_rounds`` rounds (``trainer.collecting`` samples synchronous steps in the same rounds). So the batches of a run do
not depend on the order in which its groups finish.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

QUEUED_ROUNDS = 16
"""``rollout.queue_size`` in units of ``max_concurrent_rollouts``, if it is null; as in AReaL."""


@dataclass(frozen=True)
class BatchRule:
    """How many groups a step takes.

    Attributes:
        batch_size: groups of a full batch.
        max_rounds: rounds of sampling per batch; each starts as many groups as are missing.
    """

    batch_size: int
    max_rounds: int = 1

    def end(self, accepted: Sequence[bool]) -> int | None:
        """Number of groups that the first batch uses up; ``None`` if it needs more than these.

        Args:
            accepted: per group, in order of their start, whether it is trained on.
        """
        first = self._first(accepted)
        return None if first is None else first.n_groups

    def n_rounds(self, accepted: Sequence[bool]) -> int:
        """Number of rounds in which the groups of a complete batch were sampled."""
        first = self._first(accepted)
        return 0 if first is None else first.n_rounds

    def n_complete(self, accepted: Sequence[bool]) -> int:
        """Number of batches that these groups complete."""
        batches = Batches(self)
        for one in accepted:
            batches.add(one)
        return batches.n_complete

    def _first(self, accepted: Sequence[bool]) -> Extent | None:
        batches = Batches(self)
        for one in accepted:
            batches.add(one)
            if batches.n_complete:
                return batches.take()
        return None


class Extent(NamedTuple):
    """What a complete batch uses up."""

    n_groups: int
    n_rounds: int


class Batches:
    """Divides groups into batches, one group at a time.

    Args:
        rule: how many groups a batch takes.
    """

    def __init__(self, rule: BatchRule) -> None:
        self._rule = rule
        self._complete: deque[Extent] = deque()
        self._begin()

    @property
    def n_complete(self) -> int:
        """Number of complete batches."""
        return len(self._complete)

    def add(self, accepted: bool) -> None:
        """Add the next group, which is trained on or not."""
        self._size += 1
        self._missing -= accepted
        self._left -= 1
        if self._left == 0:
            self._rounds += 1
            self._left = self._missing
            if self._missing == 0 or self._rounds == self._rule.max_rounds:
                self._complete.append(Extent(self._size, self._rounds))
                self._begin()

    def copy(self) -> Batches:
        """A copy that is filled further apart from this one."""
        other = Batches(self._rule)
        other._complete = self._complete.copy()
        other._size, other._rounds = self._size, self._rounds
        other._missing, other._left = self._missing, self._left
        return other

    def take(self) -> Extent:
        """Remove the first complete batch."""
        return self._complete.popleft()

    def _begin(self) -> None:
        self._size = self._rounds = 0
        self._missing = self._left = self._rule.batch_size  # groups of the batch, and of the round


@dataclass(frozen=True)
class Pace:
    """How far sampling may run ahead of training.

    Attributes:
        max_staleness: largest number of training steps between the weights that sample a token and the step that
            consumes it; 0 samples every group with the weights that it trains.
        max_concurrent: largest number of groups that are sampled at a time.
        queue_size: largest number of groups that are sampled or wait for their step; at least a batch.
    """

    max_staleness: int
    max_concurrent: int
    queue_size: int

    @classmethod
    def with_defaults(
        cls, max_staleness: int, batch_size: int, max_concurrent: int | None, queue_size: int | None
    ) -> Pace:
        """The pace of a run whose limits may be null; then they are AReaL's."""
        concurrent = max_concurrent or batch_size
        # A queue that cannot hold a batch would never complete one.
        return cls(max_staleness, concurrent, queue_size or max(batch_size, QUEUED_ROUNDS * concurrent))
