"""A discrete-event simulation of trainer, collector and servers.

Which groups start, and which step takes them, is decided by the collector's own ``GroupWindow``; only time is
simulated. The servers are one queue with ``n_places`` places. The trainer takes a batch, trains, publishes, and takes
the next one; sampling goes on meanwhile.

With times that never vary, t for training and publication and r for sampling a batch, a step takes ::

    max(t, r, (r + t) / (staleness + 1))

if ``max_concurrent_rollouts`` is large: a batch needs r + t from the start of its sampling to the publication of its
step, and staleness + 1 batches are on their way at a time. At staleness 0 that is r + t.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from archon_rl.collector.window import GroupWindow, Settled
from archon_rl.simulation.workload import Workload

WARM_UP = 0.2
"""Share of the steps at the start that are not measured: the window is still empty."""

NEVER_WAITS = 0.02
"""Share of time below which waiting does not limit a run."""


@dataclass(frozen=True)
class Forecast:
    """A simulated run.

    Attributes:
        staleness: ``rollout.max_head_offpolicyness``.
        steps_per_second: training steps.
        waits: share of time in which the trainer waits for a batch.
        busy: share of the servers' places that sample a group.
        mean_staleness: steps between the weights that sampled a group and the step that trains on it; the mean.
        max_staleness: the maximum.
    """

    staleness: int
    steps_per_second: float
    waits: float
    busy: float
    mean_staleness: float
    max_staleness: int

    @property
    def limit(self) -> str:
        """The part that is never idle: ``training``, ``sampling``, or else the ``staleness`` bound, for which both
        wait."""
        if self.waits < NEVER_WAITS:
            return "training"
        return "sampling" if self.busy > 1 - NEVER_WAITS else "staleness"


def simulate(workload: Workload, staleness: int, n_steps: int) -> Forecast:
    """Simulate ``n_steps`` training steps, at least two."""
    return _Run(workload, staleness).run(n_steps)


def scaled_to_batch(workload: Workload, seconds: float, n_steps: int) -> Workload:
    """The workload whose servers sample a batch in ``seconds``, on average, when training waits for it.

    All times of groups are scaled by one factor, and so is the time of a batch.
    """
    unit = replace(workload, group_seconds=1.0, train_seconds=1.0, publish_seconds=0.0)
    forecast = simulate(unit, 0, n_steps)
    return replace(workload, group_seconds=seconds * forecast.steps_per_second / forecast.waits)


@dataclass(frozen=True)
class _Moment:
    """What has added up until the end of a step."""

    time: float
    waited: float
    sampled: float


class _Run:
    def __init__(self, workload: Workload, staleness: int) -> None:
        self._workload, self._staleness = workload, staleness
        self._window: GroupWindow[int] = GroupWindow(workload.rule, workload.pace(staleness))
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()  # events of one moment happen in the order in which they were planned
        self._now = 0.0
        self._published = 0
        self._queue: deque[int] = deque()
        self._n_sampled = 0
        self._sampled_seconds = 0.0
        self._waits_since: float | None = 0.0
        self._waited = 0.0
        self._ends: list[_Moment] = []
        self._ages: list[list[int]] = []

    def run(self, n_steps: int) -> Forecast:
        self._start_groups()
        while len(self._ends) < n_steps:
            time, _, action = heapq.heappop(self._events)
            self._sampled_seconds += self._n_sampled * (time - self._now)
            self._now = time
            action()
        n_skipped = max(1, int(WARM_UP * n_steps))
        first, last = self._ends[n_skipped - 1], self._ends[-1]
        seconds = last.time - first.time
        ages = [age for step in self._ages[n_skipped:n_steps] for age in step]
        return Forecast(
            self._staleness,
            steps_per_second=(n_steps - n_skipped) / seconds,
            waits=(last.waited - first.waited) / seconds,
            busy=(last.sampled - first.sampled) / seconds / self._workload.n_places,
            mean_staleness=sum(ages) / max(1, len(ages)),
            max_staleness=max(ages, default=0),
        )

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now + seconds, next(self._order), action))

    def _start_groups(self) -> None:
        while (group := self._window.start()) is not None:
            self._queue.append(group)
        while self._queue and self._n_sampled < self._workload.n_places:
            group, version = self._queue.popleft(), self._published
            self._n_sampled += 1
            self._after(
                self._workload.seconds_of(group),
                lambda group=group, version=version: self._finish_group(group, version),
            )

    def _finish_group(self, group: int, version: int) -> None:
        self._n_sampled -= 1
        self._window.settle(group, Settled(version, "rejected" if self._workload.rejects(group) else ""))
        self._start_groups()
        self._take_batch()

    def _take_batch(self) -> None:
        if self._waits_since is None or (batch := self._window.take()) is None:
            return
        self._waited += self._now - self._waits_since
        self._waits_since = None
        self._ages.append([batch.step - version for version in batch.groups.values()])
        self._start_groups()  # the batch leaves the queue
        self._after(self._workload.train_seconds + self._workload.publish_seconds, self._publish)

    def _publish(self) -> None:
        self._published += 1
        self._window.published(self._published)
        self._ends.append(_Moment(self._now, self._waited, self._sampled_seconds))
        self._waits_since = self._now
        self._start_groups()
        self._take_batch()
