import itertools
import math
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from archon_core.contracts.pipeline import StagePlan
from archon_core.errors import ConfigError, LayoutError
from archon_core.plugins import ScheduleSpec
from archon_engine.options.archon import ArchonOptions
from archon_pipeline.stage_split import split_into_stages

ONE = ScheduleSpec(name="1F1B", target="", stages_per_rank=1)
ANY = ScheduleSpec(name="Interleaved1F1B", target="", stages_per_rank=None)
ZBV = ScheduleSpec(name="ZBV", target="", stages_per_rank=2, placement="v")

SCHEDULES = st.sampled_from([ONE, ANY, ZBV])
# Few different costs, so that ties are common.
COSTS = st.lists(st.sampled_from([0.25, 0.5, 0.75, 2.0]), min_size=1, max_size=9)


def split(
    costs: int | Sequence[float],
    schedule: ScheduleSpec = ONE,
    n_ranks: int = 2,
    *,
    embed: float = 0.0,
    head: float = 0.0,
    **options: int | None,
) -> StagePlan:
    return split_into_stages(
        [1.0] * costs if isinstance(costs, int) else costs,
        embed_cost=embed,
        head_cost=head,
        schedule=schedule,
        n_ranks=n_ranks,
        options=ArchonOptions(**options),
        role="actor",
    )


def sizes(plan: StagePlan) -> list[int]:
    return [len(stage.layers) for stage in plan.stages]


def cuts(n_layers: int, n_stages: int) -> Iterator[tuple[int, ...]]:
    """All stage sizes without empty stages, with a layer in each if there are enough."""
    least = 1 if n_layers >= n_stages else 0
    ends = [least, *[1] * (n_stages - 2), least]
    for found in itertools.product(range(n_layers + 1), repeat=n_stages):
        if sum(found) == n_layers and all(size >= low for size, low in zip(found, ends, strict=True)):
            yield found


def of_stages(costs: Sequence[float], sizes: Sequence[int], embed: float, head: float) -> list[float]:
    """The cost of each stage."""
    layers = iter(costs)
    found = [sum(itertools.islice(layers, size)) for size in sizes]
    found[0] += embed
    found[-1] += head
    return found


@pytest.mark.parametrize(
    ("schedule", "n_ranks", "n_stages", "held"),
    [
        (ANY, 2, 4, ([0, 2], [1, 3])),
        (ZBV, 2, 4, ([0, 3], [1, 2])),
        (ONE, 4, 4, ([0], [1], [2], [3])),
        (ZBV, 4, 8, ([0, 7], [1, 6], [2, 5], [3, 4])),
        (ANY, 2, 6, ([0, 2, 4], [1, 3, 5])),
    ],
)
def test_the_schedule_determines_the_placement(
    schedule: ScheduleSpec, n_ranks: int, n_stages: int, held: tuple[list[int], ...]
) -> None:
    plan = split(n_stages, schedule, n_ranks, pp_layers_per_stage=1)
    assert len(plan) == n_stages
    assert [list(plan.held_by(rank)) for rank in range(n_ranks)] == list(held)


@pytest.mark.parametrize(
    ("n_layers", "schedule", "n_ranks", "costs", "expected"),
    [
        (8, ONE, 2, {}, [4, 4]),
        (8, ANY, 2, {}, [2, 2, 2, 2]),
        (10, ANY, 2, {}, [2, 2, 3, 3]),  # earlier stages keep more activations
        (8, ONE, 2, {"head": 2.0}, [5, 3]),
        (8, ONE, 2, {"head": 2.0, "embed": 2.0}, [4, 4]),
        (8, ONE, 4, {"head": 100.0}, [2, 2, 3, 1]),  # even where the most expensive stage does not decide
        (4, ZBV, 2, {"head": 100.0}, [1, 1, 1, 1]),
        (3, ZBV, 2, {"head": 5.0}, [1, 1, 1, 0]),
        (3, ZBV, 2, {"embed": 5.0}, [0, 1, 1, 1]),
        (2, ZBV, 2, {}, [0, 1, 1, 0]),
    ],
)
def test_the_cost_of_the_most_expensive_stage_is_minimal(
    n_layers: int, schedule: ScheduleSpec, n_ranks: int, costs: dict[str, float], expected: list[int]
) -> None:
    assert sizes(split(n_layers, schedule, n_ranks, **costs)) == expected


@given(
    COSTS,
    st.sampled_from([0.0, 0.25]),
    st.sampled_from([0.0, 0.5, 2.0]),
    st.sampled_from([(ONE, 2), (ONE, 3), (ONE, 4), (ZBV, 2)]),
)
@settings(max_examples=300, deadline=None)
def test_no_other_split_is_better(
    costs: list[float], embed: float, head: float, pipeline: tuple[ScheduleSpec, int]
) -> None:
    schedule, n_ranks = pipeline
    n_stages = n_ranks * schedule.stages_per_rank
    assume(len(costs) >= n_stages - 2)
    found = split(costs, schedule, n_ranks, embed=embed, head=head)
    ranked = []
    for other in cuts(len(costs), n_stages):
        found_costs = of_stages(costs, other, embed, head)
        ranked.append((max(found_costs), sum(cost * cost for cost in found_costs), other))
    assert tuple(sizes(found)) == min(ranked)[2]


@given(
    st.integers(1, 60),
    SCHEDULES,
    st.integers(2, 8),
    st.none() | st.integers(1, 10),
    st.none() | st.integers(0, 4),
    st.none() | st.integers(0, 4),
    st.floats(0, 10),
    st.floats(0, 10),
)
@settings(max_examples=400, deadline=None)
def test_options_are_honoured_or_refused(
    n_layers: int,
    schedule: ScheduleSpec,
    n_ranks: int,
    per_stage: int | None,
    first: int | None,
    last: int | None,
    embed: float,
    head: float,
) -> None:
    options = {
        "pp_layers_per_stage": per_stage,
        "pp_first_stage_less_layers": first,
        "pp_last_stage_less_layers": last,
    }
    try:
        plan = split(n_layers, schedule, n_ranks, **options)
    except (ConfigError, LayoutError) as error:
        refusal = error
    else:
        refusal = None
    # A refusal never depends on costs: dry runs do not know them.
    if refusal is not None:
        with pytest.raises(type(refusal)) as other:
            split(n_layers, schedule, n_ranks, embed=embed, head=head, **options)
        assert str(other.value) == str(refusal)
        return
    plan = split(n_layers, schedule, n_ranks, embed=embed, head=head, **options)
    assert [layer for stage in plan.stages for layer in stage.layers] == list(range(n_layers))
    assert [stage.has_embed for stage in plan.stages] == [True] + [False] * (len(plan) - 1)
    assert [stage.has_head for stage in plan.stages] == [False] * (len(plan) - 1) + [True]
    lengths = sizes(plan)
    assert min(lengths[1:-1], default=1) >= 1
    assert min(lengths) >= 1 or n_layers < len(plan)
    per_rank = {len(plan.held_by(rank)) for rank in range(n_ranks)}
    assert len(per_rank) == 1
    if schedule.stages_per_rank is not None:
        assert per_rank == {schedule.stages_per_rank}
    elif per_stage is None:
        assert per_rank == {2}
    else:
        assert per_rank.pop() >= 2
    if per_stage is not None:
        assert len(plan) == math.ceil((n_layers + (first or 0) + (last or 0)) / per_stage)
        assert max(lengths) <= per_stage


@given(st.integers(1, 60), SCHEDULES, st.integers(2, 8), st.integers(1, 10))
@settings(max_examples=200, deadline=None)
def test_exactly_the_numbers_that_an_error_names_work(
    n_layers: int, schedule: ScheduleSpec, n_ranks: int, per_stage: int
) -> None:
    try:
        split(n_layers, schedule, n_ranks, pp_layers_per_stage=per_stage)
    except ConfigError as error:
        text = str(error)
    else:
        return
    working = set()
    for number in range(1, n_layers + 1):
        try:
            split(n_layers, schedule, n_ranks, pp_layers_per_stage=number)
        except ConfigError:
            continue
        working.add(number)
    named = text.partition("write ")[2].partition(", or null")[0] if ", or null" in text else ""
    found: set[int] = set()
    for part in filter(None, named.split(", ")):
        low, _, high = part.partition(" to ")
        found |= set(range(int(low), int(high or low) + 1))
    assert found == working


@given(st.integers(1, 40), SCHEDULES, st.integers(2, 40))
@settings(max_examples=200, deadline=None)
def test_too_many_ranks_are_refused_with_the_largest_number_that_works(
    n_layers: int, schedule: ScheduleSpec, n_ranks: int
) -> None:
    largest = (n_layers + 2) // (schedule.stages_per_rank or 2)
    if n_ranks <= largest:
        split(n_layers, schedule, n_ranks)
        return
    with pytest.raises(LayoutError) as refused:
        split(n_layers, schedule, n_ranks)
    assert (f"use at most p{largest}" if largest > 1 else "leave p out") in str(refused.value)
    if largest > 1:
        split(n_layers, schedule, largest)


@pytest.mark.parametrize(
    ("n_layers", "less", "expected"),
    [
        (8, (0, 0), [2, 2, 2, 2]),
        (8, (1, 1), [1, 2, 3, 2]),
        (10, (1, 1), [2, 3, 3, 2]),
        (9, (0, 2), [2, 3, 3, 1]),
        (6, (1, 0), [1, 1, 2, 2]),
    ],
)
def test_first_and_last_stage_are_shortened_by_the_options(
    n_layers: int, less: tuple[int, int], expected: list[int]
) -> None:
    found = split(
        n_layers,
        ANY,
        2,
        embed=99.0,
        head=99.0,
        pp_first_stage_less_layers=less[0],
        pp_last_stage_less_layers=less[1],
    )
    assert sizes(found) == expected


def test_one_end_may_be_set_and_the_other_balanced() -> None:
    assert sizes(split(8, ONE, 2, head=2.0, pp_first_stage_less_layers=0)) == [5, 3]
    assert sizes(split(8, ONE, 2, head=2.0, pp_last_stage_less_layers=0)) == [4, 4]


def test_messages_name_the_fix() -> None:
    with pytest.raises(ConfigError) as refused:
        split(8, ONE, 2, pp_layers_per_stage=2)
    assert str(refused.value) == (
        "actor.archon.pp_layers_per_stage: found 2, which splits 8 layers into 4 stages; 1F1B needs 1 stage on each of "
        "2 ranks; write 4 to 7, or null for 2 stages"
    )
    with pytest.raises(ConfigError) as refused:
        split(8, ANY, 2, pp_layers_per_stage=3, pp_first_stage_less_layers=1)
    assert str(refused.value) == (
        "actor.archon.pp_layers_per_stage: found 3, which splits 8 layers, and 1 for the shorter first and last stage, "
        "into 3 stages; Interleaved1F1B needs two or more stages on each of 2 ranks; no other number works: write null "
        "for 4 stages"
    )
    with pytest.raises(LayoutError) as refused_layout:
        split(4, ZBV, 4)
    assert str(refused_layout.value) == (
        "actor.backend: found p4, which with ZBV makes 8 stages of 4 layers; every stage holds a layer, the embedding "
        "or the head, so at most 6 are possible; use at most p3, or a schedule with fewer stages per rank"
    )
    with pytest.raises(ConfigError) as refused:
        split(8, ONE, 4, pp_last_stage_less_layers=4)
    assert str(refused.value) == (
        "actor.archon.pp_last_stage_less_layers: found 4, which leaves the last of 4 stages without layers "
        "(8 layers in all); allowed is up to 2, or null; lower it"
    )


def test_a_large_model_is_split_evenly() -> None:
    lengths = sizes(split(128, ANY, 16, embed=0.5, head=2.5))
    assert len(lengths) == 32
    assert set(lengths[:-1]) <= {4, 5}
    assert lengths[-1] in (1, 2)
