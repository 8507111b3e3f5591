"""The plan of an RL run and ``archon simulate`` agree: the recurrence over batches against the simulation of groups,
which asks the collector's own window (docs/simulate.md)."""

from __future__ import annotations

import heapq
from dataclasses import replace

import pytest

from archon_plan.overlap import BatchTimes, pace
from archon_rl.simulation.event_loop import simulate
from archon_rl.simulation.workload import Workload

EVEN = Workload(batch_size=12, group_seconds=2.0, train_seconds=3.0, concurrency=4, publish_seconds=0.5, spread=0.0)
"""Three waves of four groups: 6 s to sample a batch, 3.5 s to train and publish."""

UNEVEN = Workload(
    batch_size=32, group_seconds=20.0, train_seconds=20.0, concurrency=32, publish_seconds=1.0, spread=0.5
)

N_STEPS = 60


def batches(workload: Workload, number: int) -> list[BatchTimes]:
    """The batches of a workload: list scheduling of its groups."""
    places = min(workload.n_places, workload.max_concurrent_rollouts or workload.batch_size)
    found = []
    for batch in range(number):
        groups = range(batch * workload.batch_size, (batch + 1) * workload.batch_size)
        seconds = [workload.seconds_of(group) for group in groups]
        free = [0.0] * min(places, len(seconds))
        for one in seconds:
            heapq.heapreplace(free, free[0] + one)
        found.append(BatchTimes(min(sum(seconds) / places, max(free)), max(free)))
    return found


def planned(workload: Workload, staleness: int) -> float:
    """Steps per second by the recurrence."""
    train = workload.train_seconds + workload.publish_seconds
    queued = workload.pace(staleness).queue_size / workload.batch_size
    return 1 / pace(train, batches(workload, N_STEPS), staleness, queued).seconds


@pytest.mark.parametrize("staleness", [0, 1, 3, 5])
@pytest.mark.parametrize(
    "workload",
    [
        EVEN,
        replace(EVEN, train_seconds=0.5),
        replace(EVEN, train_seconds=20.0),
        replace(EVEN, servers=3),
        replace(EVEN, queue_size=12),
        replace(EVEN, group_seconds=12.0, concurrency=1000, max_concurrent_rollouts=1000),
    ],
)
def test_equal_groups_give_the_same_steps_per_second(workload: Workload, staleness: int) -> None:
    # The simulation measures from its 12th step to its 60th, whole bursts of 1, 2, 4 and 6 steps.
    simulated = simulate(workload, staleness, N_STEPS).steps_per_second
    assert planned(workload, staleness) == pytest.approx(simulated)


@pytest.mark.parametrize("staleness", [0, 1, 3])
@pytest.mark.parametrize(
    "workload",
    [
        UNEVEN,
        replace(UNEVEN, spread=1.0),
        replace(UNEVEN, concurrency=8),
        replace(UNEVEN, concurrency=8, train_seconds=80.0),
        replace(UNEVEN, batch_size=64, spread=0.8, train_seconds=45.0, publish_seconds=2.0),
    ],
)
def test_uneven_groups_give_nearly_the_same(workload: Workload, staleness: int) -> None:
    """The recurrence takes a batch as a whole; groups of two batches that share the servers shift each other. That made
    steps at most 1.1% too fast when this was written."""
    simulated = simulate(workload, staleness, N_STEPS).steps_per_second
    found = planned(workload, staleness)
    assert found == pytest.approx(simulated, rel=0.02)
    if staleness == 0:
        assert found == pytest.approx(simulated, rel=1e-9), "in turn, both are the same sum"
