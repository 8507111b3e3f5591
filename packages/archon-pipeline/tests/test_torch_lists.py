"""The lists of torch.distributed.pipelining against ours, as docs/pipeline.md compares them."""

from __future__ import annotations

import pytest
from torch.distributed.pipelining import schedules as torch_schedules

from archon_core.contracts.pipeline import Action, ActionKind, RankActions
from archon_pipeline.placement import place_stages
from archon_pipeline.schedules.interleaved_zero_bubble import interleaved_zero_bubble
from archon_pipeline.schedules.zbv import zbv
from archon_pipeline.simulator import simulate


def of_torch(name: str, p: int, m: int) -> RankActions:
    """The lists that torch computes for two stages per rank, without the processes its constructors need."""
    schedule = object.__new__(getattr(torch_schedules, name))
    schedule.pp_group_size, schedule.n_local_stages = p, 2
    schedule.num_stages = schedule._num_stages = 2 * p
    schedule._n_microbatches = m
    schedule.number_of_rounds = max(1, m // p)
    schedule.microbatches_per_round = m // schedule.number_of_rounds
    ranks = []
    for rank in range(p):
        schedule.rank = rank
        order = schedule._calculate_single_rank_operations(rank)
        ranks.append(tuple(Action.parse(str(action)) for action in order if action is not None))
    return tuple(ranks)


def waits(actions: RankActions, placement: str, p: int, m: int) -> float:
    return simulate(actions, place_stages(placement, p, 2 * p)).end - 6 * m  # type: ignore[arg-type]


@pytest.mark.parametrize("p", [2, 4, 8])
def test_zbv_of_torch_waits_longer_with_few_micro_batches(p: int) -> None:
    def both(m: int) -> tuple[float, float]:
        return waits(of_torch("ScheduleZBVZeroBubble", p, m), "v", p, m), waits(zbv(p, 2 * p, m), "v", p, m)

    assert both(p) == (2 * (p - 1), p - 1)
    assert both(2 * p) == both(4 * p) == (p - 1, p - 1)


@pytest.mark.parametrize("p", [2, 4, 8])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_interleaved_zero_bubble_is_as_short_in_both(p: int, factor: int) -> None:
    m = factor * p
    torch_waits = waits(of_torch("ScheduleInterleavedZeroBubble", p, m), "loop", p, m)
    assert torch_waits == waits(interleaved_zero_bubble(p, 2 * p, m), "loop", p, m) == p - 1


@pytest.mark.parametrize("name", ["ScheduleInterleavedZeroBubble", "ScheduleZBVZeroBubble"])
def test_torch_splits_every_backward_pass(name: str) -> None:
    assert not any(action.kind is ActionKind.BACKWARD for rank in of_torch(name, 4, 8) for action in rank)
