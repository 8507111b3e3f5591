"""Overlap of sampling and training: closed forms."""

from __future__ import annotations

import pytest

from archon_plan.overlap import BatchTimes, pace, play


def equal(work: float, latency: float, number: int = 120) -> list[BatchTimes]:
    return [BatchTimes(work, latency)] * number


@pytest.mark.parametrize("train", [1.0, 4.0, 7.5, 30.0])
@pytest.mark.parametrize("staleness", [0, 1, 2, 5, 9])
@pytest.mark.parametrize(("work", "latency"), [(6.0, 6.0), (2.0, 12.0)])
def test_equal_batches_take_the_longest_of_three_bounds(
    train: float, staleness: int, work: float, latency: float
) -> None:
    found = pace(train, equal(work, latency), staleness)
    assert found.seconds == pytest.approx(max(train, work, (latency + train) / (staleness + 1)))
    assert found.trainer_waits == pytest.approx(1 - train / found.seconds)
    assert found.servers_wait == pytest.approx(1 - work / found.seconds)


def test_the_queue_bounds_the_batches_on_their_way() -> None:
    assert pace(1.0, equal(2.0, 12.0), 8, queued=1.0).seconds == pytest.approx(12.0)
    assert pace(1.0, equal(2.0, 12.0), 8, queued=2.9).seconds == pytest.approx(6.0), "whole batches count"
    assert pace(9.0, equal(6.0, 6.0), 8, queued=1.0).seconds == pytest.approx(9.0), "one batch is sampled meanwhile"


def test_the_limit_is_what_never_waits() -> None:
    assert pace(3.0, equal(6.0, 6.0), 0).limit == "staleness"
    assert pace(3.0, equal(6.0, 6.0), 4).limit == "sampling"
    assert pace(9.0, equal(6.0, 6.0), 4).limit == "training"


def test_uneven_batches_are_slower_than_their_mean() -> None:
    """A late batch delays training, and an early one does not make up for it."""
    uneven = [BatchTimes(1.0, 5.0), BatchTimes(1.0, 15.0)] * 60
    assert pace(9.0, uneven, 1).seconds > pace(9.0, equal(1.0, 10.0), 1).seconds + 0.5


def test_no_batch_is_staler_than_the_bound() -> None:
    steps = play(3.0, [BatchTimes(1.0, 4.0 + number % 3) for number in range(40)], 2)
    for number, step in enumerate(steps):
        held = sum(one.published <= step.begun for one in steps[:number])
        assert number - held <= 2
        assert step.taken >= step.complete
