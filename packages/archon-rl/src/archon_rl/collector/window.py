"""The window of groups between the start of their sampling and the training step that consumes them.

Groups have numbers, in the order in which they start, and steps consume them in this order. A group may start if, with
all running groups accepted, it belongs to a step at most ``max_staleness`` after the last one whose weights the servers
hold. Without rejected groups that is AReaL's rule (arXiv:2505.24298, section 4.3)::

    accepted + running < (max_staleness + version + 1) * batch_size

No token is staler than the bound, whatever finishes first: a group that is rejected or dropped only moves later ones to
earlier steps. Groups that finish early wait, because a batch of the first ones to finish would prefer short
completions.

The window is pure: it knows numbers and outcomes, not processes or time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from archon_rl.collector.batches import Batches, BatchRule, Pace

T = TypeVar("T")


@dataclass(frozen=True)
class Settled(Generic[T]):
    """A group that is no longer sampled.

    Attributes:
        group: the group.
        reason: why no step trains on it; empty for a group that is trained on.
    """

    group: T
    reason: str = ""

    @property
    def accepted(self) -> bool:
        """Whether a step trains on the group."""
        return not self.reason


@dataclass(frozen=True)
class WindowState(Generic[T]):
    """What a checkpoint keeps of a window.

    Attributes:
        step: number of consumed batches.
        first: number of the first group that no batch has consumed.
        settled: the finished groups from there on, by number.
        unfinished: numbers of the groups that were being sampled; a resumed run samples them again.
    """

    step: int
    first: int
    settled: dict[int, Settled[T]] = field(default_factory=dict)
    unfinished: tuple[int, ...] = ()


@dataclass(frozen=True)
class ConsumedBatch(Generic[T]):
    """The groups of one step.

    Attributes:
        step: the step, from 0.
        settled: the groups that were sampled for the step, by number, in order.
    """

    step: int
    settled: dict[int, Settled[T]]

    @property
    def groups(self) -> dict[int, T]:
        """The groups to train on."""
        return {number: one.group for number, one in self.settled.items() if one.accepted}

    @property
    def dropped(self) -> dict[int, Settled[T]]:
        """The others."""
        return {number: one for number, one in self.settled.items() if not one.accepted}


class GroupWindow(Generic[T]):
    """The groups of a run that have started and are not consumed.

    Args:
        rule: how many groups a step takes.
        pace: how far sampling may run ahead.
        state: where to continue; ``None`` for a new run.

    Attributes:
        step: number of consumed batches; the next one is for this step.
        pace: how far sampling may run ahead.
    """

    def __init__(self, rule: BatchRule, pace: Pace, state: WindowState[T] | None = None) -> None:
        assert pace.queue_size >= rule.batch_size, "no batch would ever be complete"
        state = state or WindowState(0, 0)
        self._rule, self.pace = rule, pace
        self.step = state.step
        self._first = state.first
        self._settled: dict[int, Settled[T]] = {}
        self._n_waiting = 0
        self._running: set[int] = set()
        self._again = sorted(state.unfinished)
        self._next = max((self._first, *(n + 1 for n in (*state.settled, *self._again))))
        self._published = state.step
        # The batches of the groups before the first unfinished one, and of all groups if the unfinished ones are
        # accepted (``None``: to be computed), so that the calls take constant time in a window of thousands of groups.
        self._finished, self._n_finished = Batches(rule), 0
        self._hoped_for: Batches | None = None
        for number, outcome in state.settled.items():
            self._keep(number, outcome)

    @property
    def n_running(self) -> int:
        """Number of groups that are being sampled."""
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        """Number of accepted groups that wait for their step."""
        return self._n_waiting

    def published(self, step: int) -> None:
        """The servers hold the weights after ``step`` training steps."""
        assert step >= self._published, f"published {step} after {self._published}: versions never go back"
        self._published = step

    def start(self, *, beside: int = 0) -> int | None:
        """The number of the group to sample now; ``None`` if none may start yet.

        Args:
            beside: number of groups in progress that no step consumes; they count against ``max_concurrent`` alone.
        """
        if self.n_running + beside >= self.pace.max_concurrent:
            return None
        if self._again:
            number = self._again[0]
            if not self._is_due(number):  # the resumed run may have a smaller bound
                return None
            self._again.pop(0)
        elif self._has_room() and self._is_due(self._next):
            self._if_all_accepted().add(True)
            number, self._next = self._next, self._next + 1
        else:
            return None
        self._running.add(number)
        return number

    def settle(self, number: int, outcome: Settled[T]) -> None:
        """A group is no longer sampled."""
        self._running.remove(number)
        self._keep(number, outcome)

    def take(self) -> ConsumedBatch[T] | None:
        """The batch of the next step; ``None`` while it is incomplete."""
        if not self._finished.n_complete:
            return None
        end = self._finished.take().n_groups
        taken = {number: self._settled.pop(number) for number in range(self._first, self._first + end)}
        self._first += end
        self._n_finished -= end
        self._n_waiting -= sum(one.accepted for one in taken.values())
        if self._hoped_for is not None:
            self._hoped_for.take()
        self.step += 1
        return ConsumedBatch(self.step - 1, taken)

    def state(self) -> WindowState[T]:
        """What a resumed run needs."""
        unfinished = tuple(sorted((*self._running, *self._again)))
        return WindowState(self.step, self._first, dict(self._settled), unfinished)

    def _keep(self, number: int, outcome: Settled[T]) -> None:
        self._settled[number] = outcome
        self._n_waiting += outcome.accepted
        if not outcome.accepted:
            self._hoped_for = None
        while (one := self._settled.get(self._first + self._n_finished)) is not None:
            self._finished.add(one.accepted)
            self._n_finished += 1

    def _has_room(self) -> bool:
        """Whether the queue takes another group."""
        return self.n_running + len(self._again) + self.n_waiting < self.pace.queue_size

    def _is_due(self, number: int) -> bool:
        """Whether the step of a group is so near that it may start."""
        # Rejections move later groups to earlier steps, so the latest step of a group is its step if all unfinished
        # ones before it are accepted.
        before = self._if_all_accepted() if number == self._next else self._batches_before(number)
        return self.step + before.n_complete <= self._published + self.pace.max_staleness

    def _if_all_accepted(self) -> Batches:
        """The batches of all groups if the unfinished ones are accepted."""
        if self._hoped_for is None:
            self._hoped_for = self._batches_before(self._next)
        return self._hoped_for

    def _batches_before(self, number: int) -> Batches:
        """The batches of the groups before ``number``, which is not finished."""
        batches = self._finished.copy()
        for earlier in range(self._first + self._n_finished, number):
            one = self._settled.get(earlier)
            batches.add(one is None or one.accepted)
        return batches
