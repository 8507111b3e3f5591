"""Runs whose completions a collector samples, on stand-in servers: the numbers of synchronous runs, and recovery.

The collector is a thread here. ``tests/test_sampling_ahead.py`` and ``tooling/async_storm.py`` run real processes.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from bigram_engine import BigramRollout
from bigram_serving import BigramServing, CollectorThread, Faults, ThreadLink
from run_results import rows, table

from archon_core.contracts.rollout import Completion
from archon_core.errors import ConfigError, TrainingError
from archon_core.run_files.trajectories import Line, read_step, steps_in
from archon_rl.collector.sampling import NOT_SELECTED
from archon_rl.trainer.sampling_ahead import SampleAhead
from archon_rl.trajectory_files import STALE

TOLERANCE = 1e-9
PPO = ("algorithm=ppo", "critic.optimizer.lr=0.2", "critic.warmup_steps=2", "actor.adv_norm={}")
TEACHER = ("teacher.engine_type=train", "teacher.model_config={model_type: qwen3}", "teacher.warm_start.steps=5")
VARIANTS = {
    "grpo": (),
    "dapo": ("actor.dynamic_sampling=true", "gconfig.n_samples=2"),
    "ppo": PPO,
    "distillation": (*TEACHER, "teacher.rl_loss_weight=0", "reward=null", "trainer.eval_every=0"),
    "teacher": (*TEACHER, "actor.ppo_n_minibatches=2"),
}
LEFT_OUT = (
    *("staleness", "stale_prompts", "trained_tokens", "dropped/", "server_version/", "workflow/", "collector/"),
    *("eval/", "critic/explained_variance"),
)
"""Metrics that only one of both kinds of run has, and one that divides by a variance of 0."""

COLLECTED = ("rollout.backend=bigram_collected:d1", "cluster.n_gpus_per_node=9", "trainer.eval_every=0")
AHEAD = (*COLLECTED, "rollout.max_head_offpolicyness=2", "rollout.max_concurrent_rollouts=12")


def trained(folder) -> list[dict[str, float]]:
    found = [row for row in rows(folder) if "selected" in row]
    return [{name: value for name, value in row.items() if not name.startswith(LEFT_OUT)} for row in found]


def assert_same(found, expected) -> None:
    assert len(trained(found)) == len(trained(expected)) > 0
    for row, other in zip(trained(found), trained(expected), strict=True):
        assert row.keys() == other.keys()
        assert row == pytest.approx(other, rel=TOLERANCE, abs=TOLERANCE)
    torch.testing.assert_close(table(found), table(expected), rtol=TOLERANCE, atol=TOLERANCE)


def assert_consumed_once(steps) -> None:
    numbers = [number for step in sorted(steps) for number in steps[step]]
    assert sorted(steps) == list(range(len(steps)))
    assert numbers == list(range(len(numbers)))


def staleness(folder) -> list[float]:
    found = [row for row in rows(folder) if "staleness_max" in row]
    assert all(row["stale_prompts"] == 0 for row in found)
    return [row["staleness_max"] for row in found]


def stopped(collected, *options: str) -> None:
    """A run that the user stops after step 3."""
    with pytest.raises(KeyboardInterrupt):
        collected(*options, stop_after=3)


LAYOUTS = {"d1": 1, "d2": 2, "t2": 2}
"""Layout -> ranks of the trainer."""


@pytest.mark.parametrize(
    ("variant", "layout"),
    [
        pytest.param(variant, layout, marks=() if (variant, layout) == ("dapo", "d2") else pytest.mark.wide)
        for variant in VARIANTS
        for layout in LAYOUTS
    ],
)
def test_at_staleness_0_a_run_has_the_numbers_of_synchronous_sampling_on_every_layout(collected, variant, layout):
    few = (*VARIANTS[variant], "trainer.max_steps=4", "trainer.eval_every=0")
    alone = collected(*few, "trial_name=alone")
    found = collected(*few, *COLLECTED, f"actor.backend=bigram:{layout}", ranks=LAYOUTS[layout])
    assert_same(found, alone)
    assert set(staleness(found)) == {0}
    assert_consumed_once(collected.steps)
    assert ThreadLink.setup["data_ranks"] == (2 if layout == "d2" else 1), "for the number of reward processes"


def test_prompts_without_room_for_a_completion_have_no_age(collected, monkeypatch):
    complete = BigramRollout._complete

    def complete_some(self, request, seed):
        done = complete(self, request, seed)
        return Completion((), (), (), "length") if sum(request.prompt_ids) % 3 == 0 else done

    monkeypatch.setattr(BigramRollout, "_complete", complete_some)
    few = ("trainer.max_steps=3", "trainer.eval_every=0")
    assert_same(collected(*COLLECTED, *few), collected(*few, "trial_name=alone"))


def written(folder) -> dict[int, list[Line]]:
    """Step -> the trajectories in its file."""
    return {step: list(read_step(file)) for step, file in steps_in(folder.path).items()}


def test_files_have_the_groups_that_the_algorithm_rejects_as_synchronous_ones_do(collected):
    few = (*VARIANTS["dapo"], "rollout.dump_to_file=true", "trainer.max_steps=3", "trainer.eval_every=0")
    found, alone = written(collected(*COLLECTED, *few)), written(collected(*few, "trial_name=alone"))
    dropped = [one.dropped for lines in found.values() for one in lines]
    assert 0 < dropped.count(NOT_SELECTED) < len(dropped)

    def facts(lines: list[Line]) -> list[tuple[Any, ...]]:
        return [(one.group, one.sample, one.dropped, one.reward, one.token_ids, one.loss_mask) for one in lines]

    assert {step: facts(lines) for step, lines in found.items()} == {
        step: facts(lines) for step, lines in alone.items()
    }


def test_groups_that_are_too_stale_are_counted_and_written_but_not_trained_on(collected, monkeypatch):
    """Labels are forged: step 2 gets two groups of the first weights, step 3 gets nothing else."""
    collect = SampleAhead._collected

    def forge(self, batch, *facts):
        forged = {1: [*batch.settled][:2], 2: [*batch.settled]}.get(batch.step, [])
        settled = {number: aged(one) if number in forged else one for number, one in batch.settled.items()}
        return collect(self, replace(batch, settled=settled), *facts)

    def aged(one):
        old = [replace(t, versions=tuple(min(version, 0) for version in t.versions)) for t in one.group.trajectories]
        return replace(one, group=replace(one.group, trajectories=tuple(old)))

    monkeypatch.setattr(SampleAhead, "_collected", forge)
    few = (*COLLECTED, "rollout.dump_to_file=true", "actor.optimizer.lr_scheduler_type=constant")
    folder = collected(*few, "trainer.max_steps=4")
    found = [row for row in rows(folder) if "selected" in row]
    assert [row["stale_prompts"] for row in found] == [0, 2, 4, 0]
    assert [row["staleness_max"] for row in found] == [0, 1, 2, 0]
    assert [row["selected"] for row in found] == [1.0, 0.5, 0.0, 1.0]
    assert [row["trained_tokens"] > 0 for row in found] == [True, True, False, True]
    versions = [row["version"] for row in found]
    assert versions[0] < versions[1] == versions[2] < versions[3], "step 3 trains on nothing"
    shares = [sum(value for name, value in row.items() if name.startswith("staleness/")) for row in found]
    assert shares == pytest.approx([1, 1, 0, 1])
    stale = [{one.group for one in lines if one.dropped == STALE} for lines in written(folder).values()]
    assert stale == [set(), {4, 5}, {8, 9, 10, 11}, set()]
    assert all(one.dropped in ("", STALE) for lines in written(folder).values() for one in lines)
    assert_consumed_once(collected.steps)
    ends = [collected(*few, f"trainer.max_steps={n}", f"trial_name=after-{n}") for n in (2, 3)]
    assert torch.equal(table(ends[0]), table(ends[1]))


def test_servers_that_are_gone_for_a_while_get_the_weights_again(collected, monkeypatch):
    take, n_calls = SampleAhead._take, itertools.count()

    def take_late(ahead, link):
        """The first batch is not complete at once, so the trainer looks at the servers."""
        return None if next(n_calls) < 2 else take(ahead, link)

    monkeypatch.setattr(SampleAhead, "_take", take_late)
    monkeypatch.setattr(BigramServing, "outages", (1, 2))
    few = ("trainer.max_steps=3", "trainer.eval_every=0")
    found = collected(*COLLECTED, *few)
    assert BigramServing.current.n_published == 1 + 3 + 2, "at the start, after each step, after each outage"
    assert_same(found, collected(*few, "trial_name=alone"))
    assert_consumed_once(collected.steps)


@pytest.mark.parametrize(
    ("loss", "every"),
    [
        ("lost_after", 9),
        pytest.param("lost_after", 1, marks=pytest.mark.wide),
        pytest.param("lost_before", 1, marks=pytest.mark.wide),
    ],
)
def test_a_collector_may_die_at_any_message(collected, monkeypatch, loss, every):
    few = ("trainer.max_steps=3", "trainer.eval_every=0", "trainer.save_every=2", "actor.dynamic_sampling=true")
    alone = collected(*few, "trial_name=alone")
    collected(*COLLECTED, *few, "trial_name=whole")
    names = ThreadLink.faults.names
    assert {"setup", "publish", "take", "servers", "switching", "state", "stop"} == set(names)
    for number in range(1, len(names), every):
        monkeypatch.setattr(ThreadLink, "faults", Faults(**{loss: (number,)}))
        collected.steps.clear()
        found = collected(*COLLECTED, *few, f"trial_name=lost-{number}")
        assert ThreadLink.faults.n_collectors == 2, names[number - 1]
        assert_same(found, alone)
        assert_consumed_once(collected.steps)


def test_a_collector_that_dies_again_and_again_ends_the_run(collected, monkeypatch):
    monkeypatch.setattr(ThreadLink, "faults", Faults(lost_before=tuple(range(4, 100))))
    with pytest.raises(TrainingError, match=r"the collector was lost 4 times .*collector\.log"):
        collected(*COLLECTED)


def test_a_replaced_collector_must_have_the_same_workflow(collected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / "my_collected.py"
    file.write_text(
        "import uneven_workflow\n\n\ndef build(config, parts):\n    return uneven_workflow.Uneven(config, parts)\n"
    )
    kill = CollectorThread.kill

    def change_and_kill(self):
        file.write_text(file.read_text() + "# changed\n")
        kill(self)

    monkeypatch.setattr(CollectorThread, "kill", change_and_kill)
    monkeypatch.setattr(ThreadLink, "faults", Faults(lost_before=(6,)))
    with pytest.raises(ConfigError, match=r"workflow: found workflow 'my_collected:build' .* in a new collector, and"):
        collected(*COLLECTED, "workflow=my_collected:build")
    sys.modules.pop("my_collected")


@pytest.mark.parametrize(
    ("ranks", "save_every"),
    [(1, 1), pytest.param(2, 0, marks=pytest.mark.wide), pytest.param(2, 1, marks=pytest.mark.wide)],
)
def test_a_request_to_stop_ends_a_run_that_waits_for_a_batch(collected, monkeypatch, ranks, save_every):
    few = ("trainer.max_steps=2", "trainer.eval_every=0", f"trainer.save_every={save_every}")
    options = (*COLLECTED, *few, f"actor.backend=bigram:d{ranks}")
    take = SampleAhead._take

    def wait_in_the_second_step(self, link):
        if self._published[0] == 0:
            return take(self, link)
        self.run.stop.request()
        return None

    monkeypatch.setattr(SampleAhead, "_take", wait_in_the_second_step)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 1"):
        collected(*options, ranks=ranks)
    monkeypatch.setattr(SampleAhead, "_take", take)
    folder = collected(*options, "trainer.resume=true", ranks=ranks)
    assert_same(folder, collected(*few, "trial_name=alone"))
    assert_consumed_once(collected.steps)


def test_a_request_to_stop_may_come_before_the_first_batch(collected, monkeypatch):
    def wait(self, link):
        self.run.stop.request()

    monkeypatch.setattr(SampleAhead, "_take", wait)
    with pytest.raises(KeyboardInterrupt, match="stopped before the first step"):
        collected(*COLLECTED)


def test_a_resumed_run_consumes_each_record_once_over_epochs(collected):
    """15 records: the second epoch begins within a step."""
    stopped(collected, *AHEAD, "trainer.save_every=2")
    assert sorted(collected.steps) == [0, 1, 2]
    folder = collected(*AHEAD, "trainer.save_every=2", "trainer.resume=true")
    assert_consumed_once(collected.steps)
    found = staleness(folder)
    assert len(found) == 6
    assert max(found) <= 2
    assert max(found[3:]) > 0, "the resumed run trains on what its collector had finished"


def test_a_resumed_run_with_a_smaller_bound_samples_again_what_is_too_far_ahead(collected):
    stopped(collected, *AHEAD)
    folder = collected(*COLLECTED, "trainer.resume=true")
    assert_consumed_once(collected.steps)
    assert staleness(folder)[3:] == [0, 0, 0]


def test_a_reward_that_hangs_costs_its_group_alone(collected, tmp_path, monkeypatch):
    module = tmp_path / "hanging_reward.py"
    module.write_text(
        "import time\n\n\ndef score(prompt, completion, record):\n"
        "    if sum(map(ord, prompt)) % 5 == 0:\n        time.sleep(600)\n    return float(len(completion))\n"
    )
    monkeypatch.chdir(tmp_path)
    options = ("reward=hanging_reward:score", "rewards={processes: 2, timeout_seconds: 0.4, max_failed: 1.0}")
    few = ("trainer.max_steps=2", "gconfig.n_samples=2", "trainer.eval_before_train=false")
    found = [row for row in rows(collected(*COLLECTED, *options, *few)) if "reward/timeout" in row]
    assert sum(row["reward/timeout"] for row in found) > 0
    assert all(row["reward/timeout"] == row["reward/failed"] < 8 for row in found)
    assert_consumed_once(collected.steps)
