"""Training runs as SLURM jobs: their numbers, failures, signals and cancellations."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from cluster_runs import SFT, Runs, alive, assert_same, until

from .conftest import TWO, Started


@pytest.fixture(scope="module")
def alone(all_runs: Runs) -> Started:
    """The run in one process, without SLURM."""
    run = all_runs.start("alone", *SFT, "scheduler.type=local", "actor.backend=archon:d1")
    assert run.wait() == 0, run.text
    return run


def test_sft_on_two_machines_of_two_ranks_equals_one_process(runs: Runs, alone: Started) -> None:
    run = runs.start("two-by-two", *SFT)
    assert run.wait() == 0, run.text
    assert [[rank["rank"] for rank in run.node(node)["ranks"]] for node in (0, 1)] == [[0, 1], [2, 3]]
    assert run.node(0)["host"] != run.node(1)["host"]
    assert f"job {run.job}: 4 ranks on 2 machines" in run.text
    assert "step 40/40" in run.text, "the first rank's output is shown"
    assert_same(run, alone)


def test_the_first_failing_rank_is_named_with_machine_and_exit_code(runs: Runs) -> None:
    run = runs.start("exit", "reward=exit-7-on-last")
    assert run.wait() == 1
    (failed,) = [rank for rank in run.node(1)["ranks"] if rank["rank"] == 3]
    host = run.node(1)["host"]
    named = (
        f"error: rank 3 of 4 (process {failed['pid']} on {host}) failed first, with exit code 7 and no error message"
    )
    assert named in run.text
    assert f"its output is in {run.folder}/logs/job-{run.job}/attempt-0/rank-3.log" in run.text.replace("- ", "-")
    until(lambda: not any(map(alive, run.pids())), "a rank is left")


def test_after_ctrl_c_the_ranks_stop_after_their_step_and_the_job_ends(runs: Runs) -> None:
    run = runs.start("interrupted", "reward=wait", "trainer.max_steps=1000", TWO)
    run.until_step(5)
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130
    step = len(run.metrics)
    assert (run.folder / "checkpoints" / f"step-{step:08d}").is_dir()
    assert "--resume" in run.text
    assert not any(map(alive, run.pids()))


def test_scancel_stops_the_ranks_after_their_step(runs: Runs) -> None:
    run = runs.start("cancelled", "reward=wait", "trainer.max_steps=1000", TWO)
    run.until_step(5)
    subprocess.run(["scancel", run.job], check=True)
    assert run.wait() == 143, run.text
    step = len(run.metrics)
    assert Path(run.folder / "checkpoints" / f"step-{step:08d}").is_dir()
    until(lambda: not any(map(alive, run.pids())), "a rank is left")


def test_a_requeued_job_resumes_from_the_last_checkpoint(runs: Runs) -> None:
    run = runs.start("requeued", "reward=wait", "trainer.max_steps=20", TWO)
    run.until_step(5)
    subprocess.run(["scontrol", "requeue", run.job], check=True)
    assert run.wait() == 0, run.text
    assert "was started again; it resumes from the last checkpoint" in run.text
    assert [row["step"] for row in run.metrics] == [*range(1, 21)]
    assert not any(map(alive, [*run.pids(0), *run.pids(1)]))
