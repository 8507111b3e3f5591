"""Training runs on a Ray cluster: their numbers, failures, signals, and the loss of a machine."""

from __future__ import annotations

import os
import signal

import pytest

from cluster_runs import CRITIC_APART, PPO, SFT, Runs, Started, assert_same, assert_same_steps, until

from .conftest import TWO, RayCluster, processes_of

pytestmark = pytest.mark.ray


def test_sft_on_two_machines_equals_one_process(runs: Runs) -> None:
    alone = runs.start("alone", *SFT, "scheduler.type=local", "actor.backend=archon:d1")
    run = runs.start("two", *SFT, TWO)
    assert alone.wait() == 0, alone.text
    assert run.wait() == 0, run.text
    assert "Ray: 2 ranks on 2 machines" in run.text
    assert "step 40/40" in run.text, "the first rank's output is shown"
    assert_same(run, alone)


def test_a_separated_critic_trains_with_the_numbers_of_one_process(runs: Runs) -> None:
    alone = runs.start("roles-alone", *PPO, "scheduler.type=local", "actor.backend=archon:d1")
    run = runs.start("roles", *PPO, *CRITIC_APART)
    assert run.wait() == 0, run.text
    assert alone.wait() == 0, alone.text
    assert "3 ranks on 2 machines" in run.text
    assert_same_steps(run, alone)


def test_the_first_failing_rank_is_named_with_machine_and_exit_code(runs: Runs) -> None:
    run = runs.start("exit", "reward=exit-7-on-last")
    assert run.wait() == 1
    assert "error: rank 3 of 4 (process " in run.text
    assert "failed first, with exit code 7 and no error message" in run.text
    assert f"its output is in {run.folder}/logs/start-1/rank-3.log" in run.text.replace("- ", "-")
    until(lambda: not processes_of(run), "a rank is left")


def test_after_ctrl_c_the_ranks_stop_after_their_step_and_nothing_is_left(runs: Runs, cluster: RayCluster) -> None:
    run = runs.start("interrupted", "reward=wait", "trainer.max_steps=1000", TWO)
    run.until_step(5)
    assert len(processes_of(run)) == 2
    assert not cluster.is_free()
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130, run.text
    step = len(run.metrics)
    assert (run.folder / "checkpoints" / f"step-{step:08d}").is_dir()
    assert "--resume" in run.text
    assert not processes_of(run)
    assert cluster.is_free()


def test_a_run_goes_on_elsewhere_when_a_machine_dies_and_a_killed_launcher_leaves_nothing(
    runs: Runs, cluster: RayCluster
) -> None:
    run = runs.start("machine-dies", "reward=wait", "trainer.max_steps=1000", TWO)
    run.until_step(5)
    cluster.kill_worker()
    run.until(lambda: "lost; the ranks start again on other machines" in run.text, "notice of the loss")
    before = run.metrics[-1]["step"]
    cluster.add_worker()
    run.until_step(before + 3)
    assert [row["step"] for row in run.metrics] == [*range(1, len(run.metrics) + 1)]
    assert (run.folder / "logs" / "start-2" / "rank-1.log").exists()
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    until(lambda: not processes_of(run), "a rank is left")


def test_a_run_that_is_too_large_for_the_cluster_says_what_there_is(runs: Runs) -> None:
    run: Started = runs.start("large", "actor.scheduling_spec.cpu=50", TWO, "ray.placement_timeout=2")
    assert run.wait() == 2
    assert "found no place within 2 s for trainer: 2 bundles of 50 CPUs on different machines" in run.text
    assert ": 2 CPU" in run.text
