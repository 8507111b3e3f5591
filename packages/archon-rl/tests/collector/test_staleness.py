"""Ages of tokens, hand-counted, and labels that contradict each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archon_core.contracts.workflows import NO_VERSION, Trajectory
from archon_core.errors import TrainingError
from archon_rl.collector.group import Group
from archon_rl.collector.staleness import GroupAges, ages_of, staleness_metrics

STEPS = {0: 0, 2: 1, 4: 2, 6: 3}
"""Two optimizer steps per training step."""


def trajectory(*versions):
    """A prompt token, then a sampled token per version; ``None`` is a token between turns."""
    sampled = [version is not None for version in versions]
    n = len(versions) + 1
    labels = (NO_VERSION, *(NO_VERSION if version is None else version for version in versions))
    return Trajectory((1,) * n, (False, *sampled), (0.0,) * n, labels)


def group(*trajectories):
    return Group.of(trajectories)


def test_ages_count_tokens_from_the_step_of_their_weights_to_the_one_that_consumes_them():
    found = ages_of(group(trajectory(2, 2, 4), trajectory(4)), STEPS, 3)
    assert found == GroupAges({2: 2, 1: 2}, in_flight=1, in_queue=1)
    assert found.oldest == 2


def test_weights_that_a_step_left_unchanged_are_the_newest():
    assert ages_of(group(trajectory(0)), {0: 2}, 2).oldest == 0


def test_a_group_without_sampled_tokens_has_no_age():
    assert ages_of(group(trajectory(None)), STEPS, 3) == GroupAges()


def test_versions_may_go_back_between_turns_but_not_within_one():
    assert ages_of(group(trajectory(4, None, 2)), STEPS, 2).oldest == 1
    with pytest.raises(TrainingError, match="found a token of version 2 after one of version 4 in a completion"):
        ages_of(group(trajectory(4, 2)), STEPS, 2)


def test_tokens_from_the_future_and_of_unknown_weights_are_errors():
    with pytest.raises(TrainingError, match=r"weights after 3 steps in the batch of step 3; allowed .* at most 2;"):
        ages_of(group(trajectory(6)), STEPS, 2)
    many = {2 * step: step for step in range(10_000)}
    published = "10000 were published, from 0 to 19998; the nearest is 4000"
    with pytest.raises(TrainingError, match=f"found a token of version 4001; {published}; a server labels its tokens"):
        ages_of(group(trajectory(4001)), many, 10_000)


def test_metrics_share_out_the_trained_tokens_and_average_over_groups():
    kept = [GroupAges({0: 3, 1: 1}, 1, 0), GroupAges({1: 4}, 0, 1)]
    found = staleness_metrics(kept, [GroupAges({5: 2}, 2, 3)], bound=2)
    assert found == {
        "staleness": pytest.approx((1 + 1 + 5) / 3),
        "staleness_max": 5,
        "staleness_in_flight": 1.0,
        "staleness_in_queue": pytest.approx(4 / 3),
        "stale_prompts": 1,
        "trained_tokens": 8,
        "staleness/0": 3 / 8,
        "staleness/1": 5 / 8,
        "staleness/2": 0.0,
    }
    assert staleness_metrics([], [], bound=0) == {
        "staleness": 0.0,
        "staleness_max": 0,
        "staleness_in_flight": 0.0,
        "staleness_in_queue": 0.0,
        "stale_prompts": 0,
        "trained_tokens": 0,
        "staleness/0": 0.0,
    }


def test_a_bound_without_limit_reports_the_ages_that_occur():
    names = staleness_metrics([GroupAges({300: 1})], [], bound=10**9)
    assert {name for name in names if name.startswith("staleness/")} == {
        *(f"staleness/{age}" for age in range(9)),
        "staleness/300",
    }


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=4), st.integers(9, 12))
def test_every_sampled_token_has_one_age_and_the_parts_add_up(runs, step):
    trajectories = [trajectory(*sorted(versions)) for versions in runs]
    found = ages_of(group(*trajectories), {version: version for version in range(10)}, step)
    assert sum(found.tokens.values()) == sum(map(len, runs))
    assert found.in_flight + found.in_queue == found.oldest == step - min(map(min, runs))
