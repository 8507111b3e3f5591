"""Boxes of sharded tensors, against torch's own cutting."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from archon_engine.parallel.shards import Cut, local_part, shard_box


def cut_by_torch(whole, cuts, places):
    """The part that ``torch.chunk`` gives, early axes first, late ones on what they leave."""
    axes = list(zip(cuts, places, strict=True))
    for cut, place in [a for a in axes if not a[0].late] + [a for a in axes if a[0].late]:
        if cut.dim is not None:
            parts = whole.chunk(cut.size, cut.dim)
            whole = parts[place] if place < len(parts) else whole.narrow(cut.dim, 0, 0)
    return whole


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    cuts=st.lists(
        st.builds(Cut, size=st.integers(1, 4), dim=st.sampled_from([None, 0, 1]), late=st.booleans()),
        min_size=1,
        max_size=3,
    ),
)
def test_a_box_holds_the_elements_that_torch_would_give_that_rank(shape, cuts):
    whole = torch.arange(shape[0] * shape[1]).view(shape)
    covered = torch.zeros(shape, dtype=torch.int64)
    copies = 1
    for cut in cuts:
        copies *= cut.size if cut.dim is None else 1
    for places in itertools.product(*(range(cut.size) for cut in cuts)):
        box = shard_box(shape, cuts, places)
        expected = cut_by_torch(whole, cuts, places)
        assert box.shape == tuple(expected.shape)
        if box.numel:
            assert torch.equal(whole[box.slices], expected)
            covered[box.slices] += 1
    assert (covered == copies).all()


def test_fsdp_cuts_what_tensor_parallelism_left():
    # torch's documentation of _StridedShard: on a mesh of (dp 2, tp 2), dp rank 0 and tp rank 1 hold rows 4 and 5 of 8.
    cuts = (Cut(2, 0, late=True), Cut(2, 0))
    assert shard_box((8, 8), cuts, (0, 1)).start == (4, 0)
    assert shard_box((8, 8), cuts, (1, 0)).start == (2, 0)


@pytest.mark.parametrize("shape", [(3,), (2, 5)])
def test_a_plain_tensor_is_all_here(shape):
    weight = torch.nn.Parameter(torch.randn(shape))
    storage, box = local_part(weight)
    assert box.shape == shape
    storage.zero_()
    assert not weight.any()
