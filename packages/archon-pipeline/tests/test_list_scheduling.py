"""List scheduling: memory limits, joined halves, the choice among rules."""

from __future__ import annotations

from archon_core.contracts.pipeline import Action, ActionKind, RankActions
from archon_pipeline.checking import check_actions
from archon_pipeline.placement import place_stages
from archon_pipeline.schedules.list_scheduling import Rule, apply_rule, find_schedule
from archon_pipeline.schedules.whole_backward import join_halves
from archon_pipeline.simulator import simulate
from archon_pipeline.timeline import count_peak_activations

ROUND = place_stages("loop", 4, 8)
GREEDY = Rule("first", "deepest", "shallowest", backlog="none")


def parse(*ranks: str) -> RankActions:
    return tuple(tuple(Action.parse(text) for text in rank.split()) for rank in ranks)


def test_a_rank_never_holds_more_than_its_limit() -> None:
    for limit in (8, 9, 12):
        actions = apply_rule(ROUND, 8, Rule("alternating", "rounds", "deepest", backlog="ranks before"), limit)
        assert actions is not None
        assert max(count_peak_activations(actions)) <= limit


def test_a_rule_that_fills_memory_with_unfinished_micro_batches_gets_stuck() -> None:
    assert apply_rule(ROUND, 8, Rule("first", "rounds", "shallowest", backlog="none"), 2) is None


def test_the_limit_grows_until_a_rule_succeeds() -> None:
    actions = find_schedule(ROUND, 8, [Rule("first", "rounds", "shallowest", backlog="none")], 1)
    check_actions(actions, ROUND, 8)


def test_of_several_rules_the_one_with_the_least_bubble_is_kept() -> None:
    slow = Rule("first", "rounds", "shallowest", backlog="ranks after")
    alone = [simulate(find_schedule(ROUND, 8, [rule], 8), ROUND).end for rule in (slow, GREEDY)]
    assert alone[0] != alone[1]
    assert simulate(find_schedule(ROUND, 8, [slow, GREEDY], 8), ROUND).end == min(alone)


def test_all_backward_passes_are_split_before_halves_are_joined() -> None:
    actions = apply_rule(ROUND, 4, GREEDY, 8)
    assert actions is not None
    assert not any(action.kind is ActionKind.BACKWARD for rank in actions for action in rank)


def test_halves_are_joined_on_the_first_stage_and_where_the_rank_before_is_busy() -> None:
    halves = parse("0F0 0F1 0I0 0W0 0I1 0W1", "1F0 1I0 1W0 1F1 1I1 1W1")
    # Rank 1 sends the gradient of micro-batch 0 at time 3, when rank 0 waits for it: 1I0 and 1W0 stay apart.
    assert join_halves(halves, (0, 1)) == parse("0F0 0F1 0B0 0B1", "1F0 1I0 1W0 1F1 1I1 1W1")
    busy = parse("0F0 0F1 0F2 0I0 0W0 0I1 0W1 0I2 0W2", "1F0 1F1 1F2 1I0 1W0 1I1 1W1 1I2 1W2")
    joined = join_halves(busy, (0, 1))
    assert simulate(joined, (0, 1)).end == simulate(busy, (0, 1)).end


def test_joining_never_makes_a_step_longer() -> None:
    for m in (3, 4, 7, 8, 16):
        split = apply_rule(ROUND, m, GREEDY, 8)
        assert split is not None
        assert simulate(join_halves(split, ROUND), ROUND).end == simulate(split, ROUND).end
