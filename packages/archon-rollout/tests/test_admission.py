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
