"""The arithmetic of suggestions, against search by brute force."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from archon_core.layout.nearest import largest_divisor, largest_expert_sizes, smallest_data_size

SIZE = st.integers(1, 30)


@given(SIZE, SIZE, SIZE)
def test_the_smallest_data_size_is_the_first_that_divides(at_least: int, unit: int, group: int) -> None:
    first = next(size for size in range(at_least, 10_000) if size * unit % group == 0)

    assert smallest_data_size(at_least, unit, group) == first


@given(SIZE, SIZE)
def test_the_largest_divisor_is_the_last_that_divides(number: int, at_most: int) -> None:
    assert largest_divisor(number, at_most) == max(size for size in range(1, at_most + 1) if number % size == 0)


@given(SIZE, SIZE, SIZE)
def test_expert_sizes_shrink_until_their_product_divides(ranks: int, ep: int, etp: int) -> None:
    found_ep, found_etp = largest_expert_sizes(ranks, ep, etp)

    assert ranks % (found_ep * found_etp) == 0
    assert found_ep <= ep
    assert found_etp <= etp
    if ranks % (ep * etp) == 0:
        assert (found_ep, found_etp) == (ep, etp)
