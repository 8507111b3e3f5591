"""Replaying action lists: times worked out by hand, counts, and deadlocks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from archon_core.contracts.pipeline import Action, ActionKind, RankActions, SharedCores
from archon_core.errors import PluginError
from archon_pipeline.costs import Costs, StageCosts
from archon_pipeline.schedules.gpipe import gpipe
from archon_pipeline.schedules.one_f_one_b import one_f_one_b
from archon_pipeline.schedules.zbv import zbv
from archon_pipeline.simulator import replay, simulate
from archon_pipeline.timeline import count_peak_activations, count_sends, weigh_peak_activations


def parse(*ranks: str) -> RankActions:
    return tuple(tuple(Action.parse(text) for text in rank.split()) for rank in ranks)


def times(actions: RankActions, rank_of: tuple[int, ...], costs: Costs | None = None) -> dict[str, tuple[float, float]]:
    timeline = simulate(actions, rank_of, costs)
    return {str(timed.action): (timed.start, timed.end) for rank in timeline.ranks for timed in rank}


TWO = parse("0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1I1 1W1")


def test_unit_costs_by_hand() -> None:
    assert times(TWO, (0, 1)) == {
        "0F0": (0, 1),
        "0F1": (1, 2),
        "1F0": (1, 2),
        "1B0": (2, 4),
        "1F1": (4, 5),
        "1I1": (5, 6),
        "1W1": (6, 7),
        "0B0": (4, 6),
        "0B1": (6, 8),
    }
    assert simulate(TWO, (0, 1)).bubble == pytest.approx((2 * 8 - 12) / 12)


def test_messages_take_time_between_ranks_only() -> None:
    found = times(TWO, (0, 1), Costs.alike(2, message=0.5))
    assert found["1F0"] == (1.5, 2.5)
    assert found["0B0"] == (5.0, 7.0)
    # Both stages on one rank: the same lists one after the other, without messages.
    alone = parse("0F0 1F0 1B0 0B0")
    assert simulate(alone, (0, 0), Costs.alike(2, message=9.0)).end == 6


def test_stages_and_whole_backward_passes_may_have_different_times() -> None:
    costs = Costs((StageCosts(1, 1, 1), StageCosts(2, 3, 4, backward=5)))
    found = times(TWO, (0, 1), costs)
    assert found["1F0"] == (1, 3)
    assert found["1B0"] == (3, 8)
    assert found["1I1"][1] - found["1I1"][0] == 3
    assert found["1W1"][1] - found["1W1"][0] == 4


def test_activations_live_until_w_or_the_whole_backward() -> None:
    actions = parse("0F0 0F1 0I0 0F2 0W0 0B1 0I2 0W2", "1F0 1B0 1F1 1B1 1F2 1B2")
    assert count_peak_activations(actions) == (3, 1)
    assert weigh_peak_activations(parse("0F0 1F0 1B0 0B0"), 2) == (1.0,)


def test_messages_are_outputs_and_gradients_of_inputs_that_leave_the_rank() -> None:
    actions = parse("0F0 3F0 3I0 3W0 0B0", "1F0 2F0 2B0 1I0 1W0")
    assert count_sends(actions, (0, 1, 1, 0)) == (2, 2)
    assert count_sends(parse("0F0 1F0 1B0 0B0"), (0, 0)) == (0,)


def test_a_deadlock_names_the_waiting_ranks() -> None:
    with pytest.raises(
        PluginError, match=r"rank 0 at its action 1, 0B0, waits for 1B0 or 1I0; rank 1 .* waits for 0F1"
    ):
        simulate(parse("0F0 0B0 0F1 0B1", "1F1 1F0 1B0 1B1"), (0, 1))


def test_a_missing_action_is_named() -> None:
    with pytest.raises(PluginError, match="rank 1 at its action 0, 1F0, waits for 0F0"):
        simulate(parse("", "1F0 1B0"), (0, 1))


def timed_on(
    cores: SharedCores | None, actions: RankActions, rank_of: tuple[int, ...]
) -> dict[str, tuple[float, float]]:
    kinds = {ActionKind.FORWARD: 1.0, ActionKind.BACKWARD_INPUT: 1.0, ActionKind.BACKWARD_WEIGHT: 1.0}
    seconds = [kinds | {ActionKind.BACKWARD: 2.0}] * len(rank_of)
    ranks = replay(actions, rank_of, seconds, cores=cores)
    return {str(action): (start, end) for rank in ranks for action, start, end in rank}


def test_two_ranks_share_one_core_by_hand() -> None:
    """No rank ever waits while the other could run, so the step takes as long as all its work: 12."""
    assert timed_on(SharedCores((0, 0), 1.0), TWO, (0, 1)) == {
        "0F0": (0, 1),
        "0F1": (1, 3),
        "1F0": (1, 3),
        "1B0": (3, 5),
        "1F1": (5, 7),
        "0B0": (5, 9),
        "1I1": (7, 9),
        "1W1": (9, 11),
        "0B1": (9, 12),
    }


def test_ranks_on_machines_of_their_own_take_nothing_from_each_other() -> None:
    alone = timed_on(None, TWO, (0, 1))
    assert timed_on(SharedCores((0, 1), 1.0), TWO, (0, 1)) == alone
    halved = timed_on(SharedCores((0, 1), 0.5), TWO, (0, 1))
    assert halved == {action: (2 * start, 2 * end) for action, (start, end) in alone.items()}


@pytest.mark.parametrize("at_once", [1.0, 1.5, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("rank_actions", [gpipe, one_f_one_b, zbv])
def test_a_step_takes_at_least_all_work_over_the_cores(
    rank_actions: Callable[..., RankActions], at_once: float
) -> None:
    n_stages = 8 if rank_actions is zbv else 4
    rank_of = (0, 1, 2, 3, 3, 2, 1, 0)[:n_stages]
    actions = rank_actions(4, n_stages, 6)
    alone, shared = timed_on(None, actions, rank_of), timed_on(SharedCores((0,) * 4, at_once), actions, rank_of)
    work = sum(end - start for start, end in alone.values())
    end_alone, end_shared = (max(end for _, end in each.values()) for each in (alone, shared))
    assert end_shared >= max(end_alone, work / at_once) - 1e-9
    assert end_shared <= end_alone + work / at_once
    if at_once == 4.0:
        for action, times in alone.items():
            assert shared[action] == pytest.approx(times)
    if at_once == 1.0:
        # A pipeline always has something to do, so one core is never idle.
        assert end_shared == pytest.approx(work)
