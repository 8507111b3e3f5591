"""The schedules: lists of any size can be executed; bubble and peak memory are those of the documentation."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from archon_core.contracts.pipeline import ActionKind, RankActions, ScheduleActions
from archon_core.errors import ConfigError
from archon_core.plugins import ScheduleSpec
from archon_pipeline.checking import check_actions
from archon_pipeline.placement import place_stages
from archon_pipeline.plugin import archon_schedules
from archon_pipeline.simulator import simulate
from archon_pipeline.timeline import count_peak_activations, weigh_peak_activations

SPECS: dict[str, ScheduleSpec] = {spec.name: spec for spec in archon_schedules()}
LOADED: dict[str, ScheduleActions] = {name: spec.load() for name, spec in SPECS.items()}
GRID = [(p, factor * p) for p in (2, 4, 8) for factor in (1, 2, 4)]


def make(name: str, p: int, m: int, v: int | None = None) -> tuple[RankActions, tuple[int, ...]]:
    n_stages = p * (v or SPECS[name].stages_per_rank or 2)
    return LOADED[name](p, n_stages, m), place_stages(SPECS[name].placement, p, n_stages)


def idle(name: str, p: int, m: int, v: int | None = None) -> float:
    """Units of time in which the busiest rank waits: makespan less three units per stage and micro-batch."""
    actions, rank_of = make(name, p, m, v)
    return simulate(actions, rank_of).end - 3 * len(rank_of) // p * m


def peak(name: str, p: int, m: int, v: int | None = None) -> float:
    actions, rank_of = make(name, p, m, v)
    return max(weigh_peak_activations(actions, len(rank_of)))


SIZES = {"p": st.integers(1, 8), "m": st.integers(1, 20), "v": st.integers(2, 4)}
LARGE = {"p": st.integers(9, 16), "m": st.integers(1, 40), "v": st.integers(2, 4)}


@settings(max_examples=80, deadline=None)
@given(name=st.sampled_from(sorted(SPECS)), **SIZES)
def test_lists_of_any_size_can_be_executed(name: str, p: int, m: int, v: int) -> None:
    actions, rank_of = make(name, p, m, SPECS[name].stages_per_rank or v)
    check_actions(actions, rank_of, m, schedule=name)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_lists_of_sixteen_ranks_can_be_executed(name: str) -> None:
    actions, rank_of = make(name, 16, 40, SPECS[name].stages_per_rank or 2)
    check_actions(actions, rank_of, 40, schedule=name)


@pytest.mark.soak
@settings(max_examples=80, deadline=None)
@given(name=st.sampled_from(sorted(SPECS)), **LARGE)
def test_large_lists_can_be_executed(name: str, p: int, m: int, v: int) -> None:
    actions, rank_of = make(name, p, m, SPECS[name].stages_per_rank or v)
    check_actions(actions, rank_of, m, schedule=name)


@pytest.mark.parametrize(("p", "m"), GRID)
class TestBubble:
    """Idle over ideal time with unit costs, for two stages per rank where it is not one."""

    @pytest.mark.parametrize("name", ["GPipe", "1F1B"])
    def test_one_stage_per_rank_waits_for_the_others_to_fill_and_drain(self, name: str, p: int, m: int) -> None:
        actions, rank_of = make(name, p, m)
        assert simulate(actions, rank_of).bubble == pytest.approx((p - 1) / m, abs=1e-12)

    @pytest.mark.parametrize("v", [2, 3, 4])
    def test_interleaving_divides_the_bubble_by_the_stages_per_rank(self, v: int, p: int, m: int) -> None:
        actions, rank_of = make("Interleaved1F1B", p, m, v)
        assert simulate(actions, rank_of).bubble == pytest.approx((p - 1) / (v * m), abs=1e-12)

    @pytest.mark.parametrize("v", [2, 3, 4])
    def test_interleaved_zero_bubble_leaves_a_third_of_that_bubble(self, v: int, p: int, m: int) -> None:
        actions, rank_of = make("InterleavedZeroBubble", p, m, v)
        assert simulate(actions, rank_of).bubble == pytest.approx((p - 1) / (3 * v * m), abs=1e-12)

    def test_zbv_has_the_same_bubble(self, p: int, m: int) -> None:
        actions, rank_of = make("ZBVZeroBubble", p, m)
        assert simulate(actions, rank_of).bubble == pytest.approx((p - 1) / (6 * m), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(p=SIZES["p"], more=st.integers(0, 12), v=SIZES["v"])
@example(p=16, more=9, v=2)
def test_the_least_bubble_needs_no_multiple_of_the_ranks(p: int, more: int, v: int) -> None:
    # The one idle time that nothing can fill: the last rank starts p - 1 units after the first.
    m = p + more
    assert idle("ZBVZeroBubble", p, m) == p - 1
    assert idle("InterleavedZeroBubble", p, m, v) == p - 1
    assert idle("Interleaved1F1B", p, m, v) == 3 * (p - 1)


@settings(max_examples=30, deadline=None)
@given(**SIZES)
@example(p=16, m=40, v=2)
def test_zero_bubble_schedules_hold_at_most_what_1f1b_holds(p: int, m: int, v: int) -> None:
    assert peak("1F1B", p, m) == min(p, m)
    assert peak("ZBVZeroBubble", p, m) <= min(p, m)
    assert peak("InterleavedZeroBubble", p, m, v) <= min(p, m)


@pytest.mark.parametrize(("p", "m"), GRID)
def test_1f1b_holds_one_activation_less_on_every_rank(p: int, m: int) -> None:
    actions, _ = make("1F1B", p, m)
    assert count_peak_activations(actions) == tuple(range(p, 0, -1))


def test_gpipe_holds_everything() -> None:
    assert peak("GPipe", 4, 12) == 12


@pytest.mark.parametrize(("p", "m"), [(2, 2), (4, 9), (8, 32)])
@pytest.mark.parametrize("name", sorted(SPECS))
def test_micro_batches_come_in_order_on_every_stage(name: str, p: int, m: int) -> None:
    # Gradients are then summed in the same order by every schedule.
    actions, rank_of = make(name, p, m)
    for stage, rank in enumerate(rank_of):
        for kinds in ("F", "BI", "BW"):
            numbers = [a.micro_batch for a in actions[rank] if a.stage == stage and a.kind.value in kinds]
            assert numbers == list(range(m))


@pytest.mark.parametrize("name", ["InterleavedZeroBubble", "ZBVZeroBubble"])
def test_backward_halves_are_joined_where_no_rank_waits_for_the_first(name: str) -> None:
    actions, _ = make(name, 4, 16)
    kinds = [action.kind for rank in actions for action in rank]
    assert kinds.count(ActionKind.BACKWARD) >= 0.25 * 8 * 16
    for rank in actions:
        for first, second in itertools.pairwise(rank):
            together = (first.stage, first.micro_batch) == (second.stage, second.micro_batch)
            if together and (first.kind, second.kind) == (ActionKind.BACKWARD_INPUT, ActionKind.BACKWARD_WEIGHT):
                assert first.stage != 0, "nobody waits for the gradient of token ids"


@pytest.mark.parametrize("name", sorted(SPECS))
def test_only_schedules_whose_spec_allows_it_split_backward(name: str) -> None:
    kinds = {action.kind for rank in make(name, 4, 8)[0] for action in rank}
    assert (ActionKind.BACKWARD_WEIGHT in kinds) == SPECS[name].splits_backward


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("1F1B", (2, 4, 4), "1F1B: found 4 stages on 2 ranks; allowed is 1 per rank; cut the model into 2"),
        ("GPipe", (2, 2, 0), "GPipe: found 0 micro-batches; allowed is 1 or more"),
        ("Interleaved1F1B", (2, 2, 4), "found 2 stages on 2 ranks; allowed is 2 or more per rank"),
        ("InterleavedZeroBubble", (4, 10, 4), "found 10 stages on 4 ranks; .*; cut it into 8, 12, ..."),
        ("ZBVZeroBubble", (1, 1, 4), "found 1 stage on 1 rank; allowed is 2 per rank; cut the model into 2"),
        ("ZBVZeroBubble", (0, 0, 4), "found 0 pipeline ranks; allowed is 1 or more"),
    ],
)
def test_unsupported_sizes_are_refused(name: str, sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LOADED[name](*sizes)


@pytest.mark.parametrize(
    ("placement", "n_ranks", "n_stages", "expected"),
    [
        ("loop", 2, 4, (0, 1, 0, 1)),
        ("v", 2, 4, (0, 1, 1, 0)),
        ("v", 2, 6, (0, 1, 1, 0, 0, 1)),
        ("loop", 3, 3, (0, 1, 2)),
    ],
)
def test_placement_is_round_robin_or_v(placement: str, n_ranks: int, n_stages: int, expected: tuple[int, ...]) -> None:
    assert place_stages(placement, n_ranks, n_stages) == expected  # type: ignore[arg-type]
