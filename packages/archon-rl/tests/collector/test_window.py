"""The window of groups: order, staleness, capacity and recovery, over random schedules."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from archon_rl.collector.batches import BatchRule, Pace
from archon_rl.collector.window import GroupWindow, Settled


def windows(batch_size=2, max_rounds=1, max_staleness=1, max_concurrent=100, queue_size=100):
    return GroupWindow(BatchRule(batch_size, max_rounds), Pace(max_staleness, max_concurrent, queue_size))


def start_all(window):
    started = []
    while (number := window.start()) is not None:
        started.append(number)
    return started


def test_staleness_0_starts_one_batch_per_published_step():
    window = windows(max_staleness=0)
    assert start_all(window) == [0, 1]
    window.settle(0, Settled("a"))
    window.settle(1, Settled("b"))
    assert start_all(window) == []
    assert window.take().groups == {0: "a", 1: "b"}
    assert start_all(window) == [], "the servers still hold the weights that sampled the batch"
    window.published(1)
    assert start_all(window) == [2, 3]


def test_a_group_that_finishes_early_waits_for_those_before_it():
    window = windows(max_staleness=1)
    assert start_all(window) == [0, 1, 2, 3]
    for number in (3, 2, 1):
        window.settle(number, Settled(number))
    assert window.take() is None
    window.settle(0, Settled(0))
    assert list(window.take().groups) == [0, 1]


def test_a_rejected_group_is_replaced_by_later_ones_in_the_next_round():
    window = windows(max_staleness=0, max_rounds=3)
    assert start_all(window) == [0, 1]
    window.settle(0, Settled(None, "equal rewards"))
    assert start_all(window) == [2]
    window.settle(2, Settled(None, "equal rewards"))
    window.settle(1, Settled("b"))
    assert start_all(window) == [3]
    window.settle(3, Settled("d"))
    batch = window.take()
    assert batch.groups == {1: "b", 3: "d"}
    assert {number: one.reason for number, one in batch.dropped.items()} == {0: "equal rewards", 2: "equal rewards"}


def test_a_batch_is_incomplete_after_its_last_round():
    window = windows(max_staleness=0)
    start_all(window)
    window.settle(0, Settled(None, "no reward"))
    window.settle(1, Settled("b"))
    assert window.take().groups == {1: "b"}


def test_concurrency_and_queue_limit_what_starts():
    assert start_all(windows(max_staleness=9, max_concurrent=3)) == [0, 1, 2]
    window = windows(max_staleness=9, queue_size=5)
    assert start_all(window) == [0, 1, 2, 3, 4]
    window.settle(4, Settled("e"))
    assert start_all(window) == [], "finished groups occupy the queue"


@given(
    seed=st.integers(0, 2**32),
    batch_size=st.integers(1, 4),
    max_staleness=st.integers(0, 4),
    max_rounds=st.integers(1, 3),
    rejection=st.sampled_from([0.0, 0.2, 0.7]),
    max_concurrent=st.integers(1, 12),
    slack=st.integers(0, 8),
)
@settings(max_examples=300, deadline=None)
def test_no_schedule_exceeds_the_staleness_or_loses_a_group(
    seed, batch_size, max_staleness, max_rounds, rejection, max_concurrent, slack
):
    """Random arrival orders, rejections and restarts: bound, order, exactly once, and progress."""
    draws = random.Random(seed)
    rule, pace = BatchRule(batch_size, max_rounds), Pace(max_staleness, max_concurrent, batch_size + slack)
    window: GroupWindow[int] = GroupWindow(rule, pace)
    saved, saved_log = window.state(), []
    running: dict[int, int] = {}
    log: list[tuple[int, ...]] = []
    published = 0
    accepted_of = {}
    while window.step < 12:
        number = window.start()
        if number is not None:
            assert number not in running
            running[number] = published
            continue
        batch = window.take() if draws.random() < 0.5 or not running else None
        if batch is not None:
            assert batch.step == len(log)
            for group, start in batch.groups.items():
                assert batch.step - start <= max_staleness, (group, start)
            log.append(tuple(batch.settled))
            if draws.random() < 0.3:
                saved, saved_log = window.state(), list(log)
            published = window.step
            window.published(published)
        elif running:
            number = draws.choice(sorted(running))
            # Its outcome is that of its prompt, so that a repetition has the same.
            accepted_of.setdefault(number, draws.random() >= rejection)
            if accepted_of[number]:
                window.settle(number, Settled(running[number]))
            else:
                window.settle(number, Settled(None, "rejected"))
            del running[number]
            assert window.n_running + window.n_waiting <= pace.queue_size
        else:
            raise AssertionError("nothing runs, nothing may start, and no batch is complete")
        if draws.random() < 0.05:
            window = GroupWindow(rule, pace, saved)
            log, running, published = list(saved_log), {}, window.step
    consumed = [number for step in log for number in step]
    assert consumed == list(range(len(consumed)))
