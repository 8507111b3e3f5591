"""ParallelDims and the two rank grids that follow from it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archon_core.errors import LayoutError
from archon_core.layout import ParallelDims, RankGrid, parse_layout


@st.composite
def parallel_dims(draw: st.DrawFn) -> ParallelDims:
    small = st.integers(1, 4)
    pp, dp_replicate, dp_shard, cp, tp = (draw(small) for _ in range(5))
    ranks = dp_shard * cp * tp
    ep = draw(st.sampled_from([size for size in range(1, ranks + 1) if ranks % size == 0]))
    left = ranks // ep
    etp = draw(st.sampled_from([size for size in range(1, left + 1) if left % size == 0]))
    return ParallelDims(pp, dp_replicate, dp_shard, cp, tp, ep, etp)


@given(parallel_dims())
def test_rank_and_coordinates_are_inverse_bijections_on_both_views(dims: ParallelDims) -> None:
    for grid in (dims.dense_grid, dims.expert_grid):
        coordinates = [grid.coordinates(rank) for rank in range(dims.world_size)]

        assert [grid.rank(place) for place in coordinates] == list(range(dims.world_size))
        assert len({tuple(place.items()) for place in coordinates}) == dims.world_size


@given(parallel_dims())
def test_ranks_are_row_major_with_the_last_axis_innermost(dims: ParallelDims) -> None:
    for grid in (dims.dense_grid, dims.expert_grid):
        places = itertools.product(*(range(size) for size in grid.sizes))

        assert [tuple(grid.coordinates(rank).values()) for rank in range(grid.size)] == list(places)


@given(parallel_dims())
def test_both_views_place_a_rank_in_the_same_stage_and_replica(dims: ParallelDims) -> None:
    for rank in range(dims.world_size):
        dense, expert = dims.dense_grid.coordinates(rank), dims.expert_grid.coordinates(rank)

        assert (dense["pp"], dense["dp_replicate"]) == (expert["pp"], expert["dp_replicate"])
        assert dense["pp"] == rank // dims.stage_size


@given(parallel_dims(), st.data())
def test_the_groups_along_any_axes_hold_every_rank_once(dims: ParallelDims, data: st.DataObject) -> None:
    grid = data.draw(st.sampled_from([dims.dense_grid, dims.expert_grid]))
    axes = data.draw(st.lists(st.sampled_from(grid.axes), unique=True))
    groups = grid.groups(axes)

    size = 1
    for axis in axes:
        size *= grid.sizes[grid.axes.index(axis)]
    assert sorted(rank for group in groups for rank in group) == list(range(grid.size))
    assert {len(group) for group in groups} == {size}
    for group in groups:
        assert list(group) == sorted(group)
        fixed = [{axis: place for axis, place in grid.coordinates(rank).items() if axis not in axes} for rank in group]
        assert all(place == fixed[0] for place in fixed)


@given(parallel_dims())
def test_experts_and_dense_parameters_share_the_same_ranks_of_a_stage(dims: ParallelDims) -> None:
    dense = dims.dense_grid.groups(("dp_shard", "cp", "tp"))

    assert dims.expert_grid.groups(("edp", "ep", "etp")) == dense
    assert dims.edp * dims.ep * dims.etp == dims.dp_shard * dims.cp * dims.tp


def test_groups_of_a_small_layout() -> None:
    dims = parse_layout("archon:p2d2t2e2").parallel_dims(moe=True)

    assert dims.dense_grid.groups("tp") == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert dims.dense_grid.groups("dp_shard") == ((0, 2), (1, 3), (4, 6), (5, 7))
    assert dims.dense_grid.groups("pp") == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert dims.dense_grid.ranks_along(("dp_shard", "cp"), 5) == (5, 7)
    assert dims.expert_grid.ranks_along("ep", 5) == (4, 5)
    assert dims.expert_grid.groups("edp") == ((0, 2), (1, 3), (4, 6), (5, 7))
    assert dims.dense_grid.coordinates(6) == {"pp": 1, "dp_replicate": 0, "dp_shard": 1, "cp": 0, "tp": 0}


def test_a_rank_outside_the_grid_is_refused() -> None:
    grid = RankGrid(("dp", "tp"), (2, 2))

    for rank in (-1, 4):
        with pytest.raises(LayoutError, match=rf"rank {rank}: found outside the layout; allowed: 0 to 3; fix: "):
            grid.coordinates(rank)


def test_any_expert_sizes_whose_product_divides_are_allowed() -> None:
    """Neither etp in {1, tp} nor ep a multiple of cp x tp is asked."""
    dims = ParallelDims(dp_shard=4, cp=3, tp=2, ep=2, etp=3)

    assert (dims.edp, dims.world_size, dims.stage_size) == (4, 24, 24)


def test_expert_sizes_that_do_not_divide_are_refused_with_sizes_that_do(read_message) -> None:
    with pytest.raises(LayoutError) as caught:
        ParallelDims(pp=2, dp_shard=3, tp=2, ep=2, etp=2)

    message = read_message(caught.value)
    assert message.shown == "pp=2, dp_shard=3, tp=2, cp=1, ep=2, etp=2"
    assert message.carets == [(message.shown.index("ep="), len(message.shown))]
    assert message.found == "ep x etp = 4 on 6 ranks (dp_shard x cp x tp)"
    assert message.fix == "use dp_shard=4, or ep=1 with etp=2"
    ParallelDims(pp=2, dp_shard=4, tp=2, ep=2, etp=2)
    ParallelDims(pp=2, dp_shard=3, tp=2, ep=1, etp=2)


@pytest.mark.parametrize("size", [0, -1, 1.0, True, "2", None])
def test_a_size_that_is_no_positive_integer_is_refused(size: object) -> None:
    with pytest.raises(LayoutError, match=r"found tp=.*; allowed: integers from 1; fix: tp=1 "):
        ParallelDims(tp=size)


def test_the_start_up_line_lists_the_axes_and_replicas_only_where_there_are_some() -> None:
    assert parse_layout("archon:d4p2t2").parallel_dims(moe=False).describe() == (
        "pp=2, dp_shard=4, tp=2, cp=1, ep=1, etp=1"
    )
    assert parse_layout("archon:r2d4").parallel_dims(moe=False).describe() == (
        "pp=1, dp_shard=4, tp=1, cp=1, ep=1, etp=1, dp_replicate=2"
    )
