"""Options of asynchronous sampling: what a dry run refuses and records, and that a run refuses the same."""

from __future__ import annotations

import pytest
from test_preview import preview

from archon_core.errors import ConfigError
from archon_rl.collector.batches import Pace
from archon_rl.collector_options import pace_of

SERVED = "rollout.backend=served:d1"
REFUSED = [
    (
        ("rollout.consumer_batch_size=3",),
        r"rollout\.consumer_batch_size: found 3; allowed is data\.batch_size=4, the number of prompts that a step",
    ),
    (("rollout.queue_size=3",), r"rollout\.queue_size: found 3; a step takes data\.batch_size=4 groups; allowed is at"),
    (
        ("reward=model", "reward_model.path=somewhere", "rollout.max_head_offpolicyness=1"),
        r"rollout\.max_head_offpolicyness: found 1 with reward=model, .*; allowed is 0; set it, or choose a reward",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED)
def test_dry_run_and_run_refuse_the_same(run, overrides, message):
    found, *_ = preview(run, SERVED, *overrides)
    with pytest.raises(ConfigError, match=f"^{message}") as raised:
        run(SERVED, *overrides)
    assert str(raised.value) in found.problems


@pytest.mark.parametrize(
    "overrides",
    [
        ("rollout.queue_size=4", "rollout.consumer_batch_size=4"),
        ("reward=model", "reward_model.path=somewhere"),
        ("rollout.max_head_offpolicyness=1",),
    ],
)
def test_settings_within_the_bounds_are_accepted(run, overrides):
    found, *_ = preview(run, SERVED, *overrides)
    assert not [problem for problem in found.problems if problem.startswith("rollout.")]


def test_without_servers_the_options_are_not_used_and_the_dry_run_says_so(run):
    options = {"max_head_offpolicyness": "2", "max_concurrent_rollouts": "1", "queue_size": "1"}
    overrides = tuple(f"rollout.{name}={value}" for name, value in options.items())
    found, *_ = preview(run, *overrides)
    decisions = {one.option: one for one in found.decisions if one.option.startswith("rollout.")}
    assert {name: decisions[f"rollout.{name}"].requested for name in options} == options
    assert all("sample and train in turns" in one.reason for one in decisions.values())
    assert not found.problems
    run(*overrides, "trainer.max_steps=1")


def test_a_reward_model_samples_in_turns_on_servers_too_and_the_dry_run_says_so(run):
    limits = ("rollout.max_concurrent_rollouts=2", "rollout.queue_size=8")
    found, *_ = preview(run, SERVED, "reward=model", "reward_model.path=somewhere", *limits)
    decisions = [one for one in found.decisions if f"{one.option}={one.requested}" in limits]
    assert len(decisions) == len(limits)
    assert all("a model scores the completions of a whole step" in one.reason for one in decisions)
    sampled_ahead, *_ = preview(run, SERVED, *limits)
    assert not [one for one in sampled_ahead.decisions if f"{one.option}={one.requested}" in limits]


def test_options_left_out_have_areals_defaults(run):
    assert pace_of(run.config(SERVED)) == Pace(0, max_concurrent=4, queue_size=64)
    limited = run.config("rollout.max_concurrent_rollouts=1", "rollout.max_head_offpolicyness=3", "data.batch_size=20")
    assert pace_of(limited) == Pace(3, max_concurrent=1, queue_size=20), "the queue holds a batch at least"
    chosen = run.config("rollout.max_concurrent_rollouts=7", "rollout.queue_size=9")
    assert pace_of(chosen) == Pace(0, max_concurrent=7, queue_size=9)


@pytest.mark.parametrize("option", ["max_head_offpolicyness=-1", "max_concurrent_rollouts=0", "queue_size=0"])
def test_invalid_numbers_are_refused(run, option):
    name, _, value = option.partition("=")
    with pytest.raises(ConfigError, match=rf"rollout\.{name}: found {value}"):
        run.config(f"rollout.{option}")


def test_a_batch_of_the_consumer_is_refused_without_servers_too(run):
    found, *_ = preview(run, "rollout.consumer_batch_size=3")
    with pytest.raises(ConfigError, match=r"rollout\.consumer_batch_size: found 3") as raised:
        run("rollout.consumer_batch_size=3")
    assert str(raised.value) in found.problems


@pytest.mark.parametrize(("mode", "noted"), [("keep", True), ("abort", False)])
def test_the_grace_period_has_an_effect_only_where_requests_are_ended(run, mode, noted):
    found, *_ = preview(run, SERVED, f"rollout.interruption={mode}", "rollout.pause_grace_period=2")
    assert ("rollout.pause_grace_period" in {one.option for one in found.decisions}) == noted


@pytest.mark.parametrize("option", ["interruption=wait", "pause_grace_period=-1", "consumer_batch_size=0"])
def test_invalid_values_are_refused(run, option):
    name, _, value = option.partition("=")
    with pytest.raises(ConfigError, match=rf"rollout\.{name}: found '?{value}"):
        run.config(f"rollout.{option}")


def test_completions_of_the_trainers_ranks_are_traced_and_checked_too(run, caplog):
    caplog.set_level("INFO")
    run("rollout.enable_rollout_tracing=true", "rollout.check_trajectory_format=true", "trainer.max_steps=1")
    lines = [line for line in caplog.messages if line.startswith("group ")]
    assert [line.partition(":")[0] for line in lines] == [f"group {number}" for number in range(4)]
