from hypothesis import given
from hypothesis import strategies as st

from archon_core.contracts.rollout import GenerationConfig
from archon_rollout.admission import AdmissionQueue, Sample, rows_to_fill

CONFIG = GenerationConfig()


def samples_of(requests: list[tuple[int, int]]) -> list[Sample]:
    """Samples of requests given as (prompt length, number of samples)."""
    return [
        Sample(request, number, seed=0, prompt_length=length, limit=1, config=CONFIG)
        for request, (length, n) in enumerate(requests)
        for number in range(n)
    ]


REQUESTS = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9)), max_size=12)


@given(REQUESTS, st.integers(1, 20), st.integers(1, 120))
def test_samples_leave_in_order_within_the_rows_and_tokens_allowed(requests, n_rows, tokens):
    samples = samples_of(requests)
    queue = AdmissionQueue(samples)
    taken = []
    while queue:
        groups = queue.take(n_rows, tokens)
        members = [sample for group in groups for sample in group.samples]
        assert 1 <= len(members) <= n_rows
        lengths = [group.samples[0].prompt_length for group in groups]
        assert sum(lengths) <= tokens or len(groups) == 1
        taken += groups
        for group in groups:
            assert len({sample.request for sample in group.samples}) == 1
    assert [sample for group in taken for sample in group.samples] == samples
    last_of_request = {group.request: group for group in taken}
    assert all(group.complete == (last_of_request[group.request] is group) for group in taken)


def test_a_request_is_split_only_where_the_rows_end():
    queue = AdmissionQueue(samples_of([(5, 3), (5, 3), (5, 1)]))
    groups = queue.take(5)
    assert [(group.request, len(group.samples), group.complete) for group in groups] == [(0, 3, True), (1, 2, False)]
    groups = queue.take(5)
    assert [(group.request, len(group.samples), group.complete) for group in groups] == [(1, 1, True), (2, 1, True)]


@given(st.integers(0, 300), st.integers(1, 300), st.data())
def test_rows_are_filled_without_exceeding_them_and_something_always_runs(n_waiting, max_rows, data):
    n_active = data.draw(st.integers(0, max_rows))
    n = rows_to_fill(n_waiting=n_waiting, n_active=n_active, max_rows=max_rows)
    assert 0 <= n <= min(n_waiting, max_rows - n_active)
    if n_active == 0:
        assert n == min(n_waiting, max_rows)


def test_running_rows_wait_for_a_prefill_only_when_an_eighth_of_the_rows_is_free():
    decisions = [rows_to_fill(n_waiting=100, n_active=active, max_rows=32) for active in (32, 31, 29, 28, 20)]
    assert decisions == [0, 0, 0, 4, 12]
    assert rows_to_fill(n_waiting=2, n_active=30, max_rows=32) == 2, "the last ones do not wait for more"


def calls_of(*sizes: int, is_short: bool = False) -> list[Sample]:
    """One request per call, with so many samples."""
    return [
        Sample(call, number, seed=0, prompt_length=3, limit=1, config=CONFIG, call=call, is_short=is_short)
        for call, size in enumerate(sizes)
        for number in range(size)
    ]


def taken_by_call(queue: AdmissionQueue, n_rows: int) -> dict[int, int]:
    return {group.samples[0].call: len(group.samples) for group in queue.take(n_rows)}


def test_calls_share_the_free_rows_and_a_small_one_does_not_wait_for_thousands_of_samples():
    queue = AdmissionQueue(calls_of(4000, 2, 3000))
    assert taken_by_call(queue, 9) == {0: 4, 1: 2, 2: 3}, "a row that a small call leaves goes to the next one"
    assert [taken_by_call(queue, 1) for _ in range(4)] == [{2: 1}, {0: 1}, {2: 1}, {0: 1}]
    assert len(queue) == 7002 - 9 - 4


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 12))
def test_a_call_waits_for_at_most_one_turn_of_each_other_call(sizes, n_rows):
    queue = AdmissionQueue(calls_of(*sizes))
    waits = dict.fromkeys(range(len(sizes)), 0)
    left = dict(enumerate(sizes))
    while queue:
        taken = taken_by_call(queue, n_rows)
        assert sum(taken.values()) == min(n_rows, sum(left.values()))
        for call in [call for call, n in left.items() if n]:
            left[call] -= taken.get(call, 0)
            waits[call] = 0 if call in taken else waits[call] + n_rows
            assert waits[call] <= len(sizes) - 1
    assert not any(left.values())


def test_short_samples_can_be_taken_before_their_turn_once():
    queue = AdmissionQueue([*calls_of(5), *(s for s in calls_of(0, 1, 1, is_short=True))])
    first = queue.take_short()
    assert (first.request, first.complete) == (1, True)
    assert [group.request for group in queue.take(9)] == [0, 2]
    assert queue.take_short() is None
    assert len(queue) == 0


def test_removed_samples_are_neither_taken_nor_short():
    queue = AdmissionQueue([*calls_of(3), *calls_of(0, 1, is_short=True)])
    assert [sample.call for sample in queue.remove(lambda sample: sample.call == 1 or sample.number == 0)] == [0, 1]
    assert queue.take_short() is None
    assert [sample.number for group in queue.take(9) for sample in group.samples] == [1, 2]
