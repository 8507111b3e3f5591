"""Which steps of a run are profiled."""

from collections.abc import Callable

import pytest

from archon_core.config.loading import LoadedConfig
from archon_core.errors import ConfigError
from archon_train.profile_plan import ProfilePlan

Load = Callable[..., LoadedConfig]

RANGE = ProfilePlan((2, 3), frozenset({2, 3}), frozenset({2, 3}), 10)
LISTS = ProfilePlan((), frozenset({1, 5}), frozenset({7}), 10)


def decided(plan: ProfilePlan, **situation: object) -> list[tuple[str, str, str]]:
    found = plan.decisions(**{"done": 0, "total_steps": 9, "device": "cuda", **situation})
    return [(decision.option, decision.requested, decision.effective) for decision in found]


def test_times_of_profiled_steps_are_marked_as_not_representative() -> None:
    assert decided(RANGE) == [("actor.archon.profile_steps", "[2, 3]", "traced")]
    assert decided(LISTS) == [("profiler.trace_steps", "[1, 5]", "traced")]
    assert decided(ProfilePlan()) == []


def test_a_cpu_has_no_memory_snapshots() -> None:
    assert decided(LISTS, device="cpu")[1:] == [("profiler.memory_steps", "[7]", "no memory snapshots")]


def test_a_resumed_run_profiles_the_steps_that_remain() -> None:
    assert decided(RANGE, done=2) == [
        ("actor.archon.profile_steps", "[2]", "not profiled"),
        ("actor.archon.profile_steps", "[3]", "traced"),
    ]
    assert decided(RANGE, done=3) == [("actor.archon.profile_steps", "[2, 3]", "not profiled")]


def test_listed_steps_after_the_end_are_left_out_and_a_range_there_is_refused() -> None:
    assert decided(LISTS, total_steps=5) == [
        ("profiler", "[7]", "not profiled"),
        ("profiler.trace_steps", "[1, 5]", "traced"),
    ]
    assert LISTS.problem(5) is None
    assert RANGE.problem(3) is None
    assert RANGE.problem(2) == (
        "found [2, 3], and the run has 2 steps; allowed are steps from 1 to 2; choose other steps, or raise "
        "trainer.max_steps"
    )


@pytest.mark.parametrize("steps", ["[0, 1]", "[3, 2]", "[1]", "[1, 2, 3]", "[]"])
def test_a_range_is_its_first_and_last_step(load: Load, steps: str) -> None:
    with pytest.raises(ConfigError, match=r"actor\.archon\.profile_steps: found .*allowed are \[first, last\]"):
        load(f"actor: {{backend: 'archon:d1', archon: {{profile_steps: {steps}}}}}\n")


def test_options_of_several_sections_must_agree(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"profile_steps: found \[2, 5\], and the run has 4 steps"):
        load("actor: {backend: 'archon:d1', archon: {profile_steps: [2, 5]}}\ntrainer: {max_steps: 4}\n")
    with pytest.raises(ConfigError, match=r"critic.*allowed is null.*set actor\.archon\.profile_steps"):
        load("actor: {backend: 'archon:d1'}\ncritic: {archon: {profile_steps: [2, 5]}}\n")
    with pytest.raises(ConfigError, match=r"profiler\.trace_steps: found \[0\]; allowed are lists of training steps"):
        load("profiler: {trace_steps: [0]}\n")


def test_a_range_adds_to_the_lists(load: Load) -> None:
    text = "actor: {backend: 'archon:d1', archon: {profile_steps: [2, 3]}}\nprofiler: {memory_steps: [7]}\n"
    plan = ProfilePlan.of(load(text).config)
    assert (plan.trace_steps, plan.memory_steps) == ({2, 3}, {2, 3, 7})
    assert (ProfilePlan.of(load("seed: 1\n").config).steps, plan.steps) == (frozenset(), {2, 3, 7})
