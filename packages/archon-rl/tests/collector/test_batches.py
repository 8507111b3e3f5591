"""How groups fill batches."""

from hypothesis import given
from hypothesis import strategies as st

from archon_rl.collector.batches import Batches, BatchRule


def sizes_by_rounds(accepted, batch_size, max_rounds):
    """Sizes of the complete batches: every round draws as many groups as are missing."""
    sizes, start = [], 0
    while True:
        end = start
        for _ in range(max_rounds):
            end += batch_size - sum(accepted[start:end])
            if end > len(accepted):
                return sizes
            if sum(accepted[start:end]) == batch_size:
                break
        sizes.append(end - start)
        start = end


@given(accepted=st.lists(st.booleans(), max_size=60), batch_size=st.integers(1, 5), max_rounds=st.integers(1, 4))
def test_batches_are_those_of_rounds(accepted, batch_size, max_rounds):
    expected = sizes_by_rounds(accepted, batch_size, max_rounds)
    rule = BatchRule(batch_size, max_rounds)
    batches = Batches(rule)
    for one in accepted:
        batches.add(one)
    assert batches.n_complete == rule.n_complete(accepted) == len(expected)
    assert rule.end(accepted) == (expected[0] if expected else None)
    assert [batches.take().n_groups for _ in expected] == expected
