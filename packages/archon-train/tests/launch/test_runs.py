"""``archon train`` over several ranks, from start to end: by itself, by ``torchrun``, stopped and resumed."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from archon_train.run.interrupt import SAME_SIGNAL_SECONDS

from .conftest import TORCHRUN, Start


@pytest.mark.parametrize(("layout", "n_ranks"), [("d2", 2), pytest.param("d2t2", 4, marks=pytest.mark.wide)])
def test_a_run_starts_its_ranks_and_ends_with_all_of_them(start: Start, layout: str, n_ranks: int) -> None:
    run = start(f"actor.backend=archon:{layout}")
    assert run.wait() == 0, run.err
    assert [json.loads(row) for row in run.rows()] == [{"step": step, "ranks": n_ranks} for step in range(1, 6)]
    assert len(set(run.pids(n_ranks))) == n_ranks
    assert run.leaves_no_process()
    assert "step 5/5" in run.out
    for rank in range(1, n_ranks):
        log = (run.folder / f"logs/start-1/rank-{rank}.log").read_text()
        assert f"rank {rank} prints this\nrank {rank} complains" in log
        assert f"rank {rank} prints this" not in run.out
    assert run.out.count("rank 0 prints this") == 1


def test_a_run_folder_that_is_taken_is_refused_before_ranks_start_and_set_aside_once(start: Start) -> None:
    assert start("actor.backend=archon:d1").wait() == 0
    refused = start()
    assert refused.wait() == 2
    assert "found an earlier run" in refused.last_lines
    assert "ranks: " not in refused.err
    run = start("--restart", "actor.archon.enable_compile=false")
    assert run.wait() == 0, run.err
    assert run.err.count("earlier run set aside: ") == 1
    assert run.err.count("run folder: ") == 1
    assert run.err.count("ranks: 2;") == 1
    assert (run.folder.with_name("trial0.1") / "checkpoints/step-00000005/weights").is_file()


def test_torchrun_starts_the_ranks_too(start: Start) -> None:
    run = start("allocation_mode=d2", launcher=TORCHRUN)  # its ranks are real processes all the same
    assert run.wait() == 0, run.err
    assert len(run.rows()) == 5
    assert run.err.count("run folder: ") == 1
    assert run.out.count("because") == 1, "the decisions are printed once"
    assert run.leaves_no_process()


def test_torchrun_with_another_number_of_ranks_is_refused_once_with_the_right_command(start: Start) -> None:
    run = start("actor.backend=archon:d4", launcher=TORCHRUN)
    assert run.wait() != 0
    refusal = "launcher: found 2 processes (WORLD_SIZE); actor.backend=archon:d4 needs 4"
    assert run.err.count(f"error: {refusal}") <= 1, "at most the first rank prints it, unless torchrun ends it before"
    assert refusal in run.err.rpartition("FAILED")[2], "torchrun's summary repeats what the rank that it blames left"
    assert "torchrun --nproc-per-node=4 -m archon_core.cli train " in run.err


def test_ctrl_c_stops_all_ranks_after_their_step_and_the_run_goes_on_later(start: Start) -> None:
    run = start("trainer.max_steps=100000", "trainer.max_restarts=5")
    run.wait_for_step(4)
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130, run.err
    assert "restart 1" not in run.err, "a run that was asked to stop is not restarted"
    assert run.err.count("stopping after this step") == 1
    assert run.err.count("interrupted: the last checkpoint is ") == 1
    assert run.leaves_no_process()
    stopped_at = len(run.rows())
    (checkpoint,) = (run.folder / "checkpoints").iterdir()
    assert checkpoint.name == f"step-{stopped_at:08d}"

    resumed = start("--resume", f"trainer.max_steps={stopped_at + 3}")
    assert resumed.wait() == 0, resumed.err
    assert [json.loads(row)["step"] for row in resumed.rows()] == list(range(1, stopped_at + 4))
    assert (run.folder / "logs/start-1/rank-1.log").is_file(), "the first start's log is kept"
    assert (run.folder / "logs/start-2/rank-1.log").is_file()


def test_one_signal_that_reaches_launcher_and_ranks_alike_is_one(start: Start) -> None:
    run = start("trainer.max_steps=100000")
    pids = run.pids(2)
    run.wait_for_step(4)
    for _ in range(2):
        for pid in (run.process.pid, *pids):
            os.kill(pid, signal.SIGTERM)
    assert run.wait() == 143, run.err
    assert run.err.count("interrupted: the last checkpoint is ") == 1
    assert run.leaves_no_process()


@pytest.mark.wide
def test_torchrun_that_is_stopped_stops_the_ranks_after_their_step(start: Start) -> None:
    run = start("trainer.max_steps=100000", launcher=TORCHRUN)
    run.wait_for_step(4)
    run.process.send_signal(signal.SIGINT)
    assert run.wait() != 0
    assert "interrupted: the last checkpoint is " in run.err
    assert run.err.count("stopping after this step") == 1
    assert run.leaves_no_process()


def test_a_second_signal_ends_ranks_that_cannot_end_by_themselves(start: Start) -> None:
    run = start("reward=hang")
    run.pids(2)
    run.wait_for_step(3)
    run.process.send_signal(signal.SIGINT)
    run.wait_until(lambda: "stopping after this step" in run.err)
    time.sleep(SAME_SIGNAL_SECONDS)
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130
    assert "interrupted: there is no checkpoint yet" in run.last_lines
    assert run.leaves_no_process()


def test_a_signal_while_ranks_start_up_ends_them(start: Start) -> None:
    run = start("trainer.max_steps=100000", fresh=True)  # forks would have started up
    run.wait_until(lambda: "ranks: 2;" in run.err)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 143, run.err
    assert "interrupted: " in run.last_lines
    assert "error: " not in run.err
    assert run.leaves_no_process()


def test_ranks_end_when_their_launcher_is_killed(start: Start) -> None:
    run = start("reward=hang", fresh=True)  # one rank sits in a collective, the other sleeps
    pids = run.pids(2)
    run.wait_for_step(3)
    run.process.kill()
    assert run.wait() == -signal.SIGKILL
    assert len(pids) == 2
    assert run.leaves_no_process()


@pytest.mark.wide
def test_ranks_end_when_torchrun_is_killed(start: Start) -> None:
    run = start("reward=hang", launcher=TORCHRUN)
    run.pids(2)
    run.wait_for_step(3)
    run.process.kill()
    run.wait()
    assert run.leaves_no_process()
