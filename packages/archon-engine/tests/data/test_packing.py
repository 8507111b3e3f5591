import pytest
from hypothesis import given
from hypothesis import strategies as st

from archon_core.errors import DataError
from archon_engine.data.packing import first_fit_decreasing, plan_micro_batches

LENGTHS = st.lists(st.integers(1, 50), max_size=40)
ALGORITHMS = st.sampled_from(["ffd", "kk"])


@given(
    lengths=LENGTHS,
    algorithm=ALGORITHMS,
    n_mbs=st.integers(1, 6),
    divisor=st.integers(1, 4),
    limit=st.none() | st.integers(50, 200),
)
def test_every_sequence_is_in_one_micro_batch_and_all_limits_hold(lengths, algorithm, n_mbs, divisor, limit):
    plan = plan_micro_batches(lengths, n_mbs=n_mbs, n_mbs_divisor=divisor, max_tokens_per_mb=limit, algorithm=algorithm)
    assert sorted(i for members in plan for i in members) == list(range(len(lengths)))
    assert len(plan) >= n_mbs
    assert len(plan) % divisor == 0
    if limit is not None:
        assert all(sum(lengths[i] for i in members) <= limit for members in plan)


@given(lengths=LENGTHS, algorithm=ALGORITHMS, granularity=st.integers(1, 5), n_mbs=st.integers(1, 4))
def test_groups_stay_together(lengths, algorithm, granularity, n_mbs):
    lengths = lengths[: len(lengths) // granularity * granularity]
    plan = plan_micro_batches(lengths, n_mbs=n_mbs, granularity=granularity, algorithm=algorithm)
    for members in plan:
        groups = {i // granularity for i in members}
        assert members == sorted(i for g in groups for i in range(g * granularity, (g + 1) * granularity))


def test_first_fit_decreasing_opens_no_more_micro_batches_than_needed():
    assert plan_micro_batches([6, 5, 4, 3, 2], max_tokens_per_mb=10) == [[0, 2], [1, 3, 4]]


@given(
    sizes=st.lists(st.integers(0, 3) | st.integers(0, 12), max_size=20),
    capacity=st.none() | st.integers(0, 10),
    least=st.integers(1, 6),
    divisor=st.integers(1, 3),
)
def test_first_fit_leaves_no_bin_empty_that_an_item_could_fill_whatever_the_sizes(sizes, capacity, least, divisor):
    bins = first_fit_decreasing(sizes, capacity, least, divisor)
    assert sorted(i for members in bins for i in members) == list(range(len(sizes)))
    assert (len(bins) >= least, len(bins) % divisor) == (True, 0)
    assert sum(map(bool, bins)) == min(len(bins), len(sizes))
    for members in bins:
        assert capacity is None or len(members) < 2 or sum(sizes[i] for i in members) <= capacity


def test_differencing_splits_evenly():
    lengths = [8, 7, 6, 5, 4]
    loads = [sum(lengths[i] for i in m) for m in plan_micro_batches(lengths, n_mbs=2, algorithm="kk")]
    assert sorted(loads) == [14, 16]


def test_micro_batches_are_empty_where_sequences_are_too_few():
    assert sorted(map(len, plan_micro_batches([3, 3], n_mbs=4))) == [0, 0, 1, 1]


def test_a_sequence_over_the_limit_is_an_error_that_says_what_to_raise():
    with pytest.raises(DataError, match=r"max_tokens_per_mb=10: found a sequence of 11 tokens; raise the limit"):
        plan_micro_batches([3, 11], max_tokens_per_mb=10)


def test_granularity_must_divide_the_batch():
    with pytest.raises(DataError, match=r"granularity=2: found 3 sequences"):
        plan_micro_batches([1, 1, 1], granularity=2)
