"""A rank that dies ends the run, and the last lines say which one it was and why."""

from __future__ import annotations

import os
import re
import signal

import pytest

from .conftest import TORCHRUN, Start


@pytest.mark.parametrize(
    ("rank", "n_ranks", "place"),
    [
        (1, 2, r"its output is in \S+/rank-1\.log"),
        (0, 2, "its output is above"),
        pytest.param(1, 4, r"its output is in \S+/rank-1\.log", marks=pytest.mark.wide),
    ],
)
def test_an_exception_on_one_rank_ends_all_and_is_shown(start: Start, rank: int, n_ranks: int, place: str) -> None:
    run = start(f"reward=raise-on-{rank}", f"actor.backend=archon:d{n_ranks}")
    assert run.wait() == 1
    last = run.last_lines
    assert last.startswith("error: ValueError: found no gold\n")
    assert re.search(rf"^rank {rank} of {n_ranks} \(process \d+\) failed first; {place}$", last, re.MULTILINE)
    assert 'raise ValueError("found no gold")' in run.err, "where it was raised"
    assert run.err.count("Traceback (most recent call last)") == 1, "those of the others say only that it is gone"
    assert run.leaves_no_process()


@pytest.mark.parametrize("n_ranks", [2, pytest.param(4, marks=pytest.mark.wide)])
def test_a_killed_rank_is_named_before_those_that_lost_it(start: Start, n_ranks: int) -> None:
    run = start("trainer.max_steps=100000", f"actor.backend=archon:d{n_ranks}")
    victim = run.pids(n_ranks)[0]
    run.wait_for_step(4)
    os.kill(victim, signal.SIGKILL)
    assert run.wait() == 1
    assert f"error: rank 0 of {n_ranks} (process {victim}) was killed first, by SIGKILL" in run.last_lines
    assert "out of memory" in run.last_lines
    assert run.leaves_no_process()


def test_a_rank_that_is_killed_before_it_joins_ends_the_others(start: Start) -> None:
    run = start(DIE_EARLY="1")
    assert run.wait() == 1
    assert re.search(r"rank 1 of 2 \(process \d+\) was killed first, by SIGKILL", run.last_lines)


def test_a_users_mistake_that_all_ranks_find_is_shown_once_and_plainly_and_not_tried_again(start: Start) -> None:
    run = start("reward=mistake-on-all", "trainer.max_restarts=1")
    assert run.wait() == 2
    assert "restart 1" not in run.err
    assert run.err.rstrip().splitlines()[-1] == "error: found no gold; dig elsewhere"
    assert run.err.count("found no gold") == 1
    assert "Traceback" not in run.err
    assert run.leaves_no_process()


def test_a_users_mistake_that_one_rank_finds_is_shown_with_the_rank(start: Start) -> None:
    run = start("reward=mistake-on-0")
    assert run.wait() == 2
    error, where = run.last_lines.splitlines()
    assert error == "error: found no gold; dig elsewhere"
    assert re.fullmatch(r"rank 0 of 2 \(process \d+\) failed first; its output is above", where)
    assert "Traceback" not in run.err
    assert run.leaves_no_process()


@pytest.mark.wide
def test_torchrun_reports_a_rank_that_fails(start: Start) -> None:
    run = start("reward=raise-on-1", launcher=TORCHRUN)
    assert run.wait() == 1
    assert "ValueError: found no gold" in run.err
    assert run.leaves_no_process()


@pytest.mark.wide
def test_torchrun_reports_a_users_mistake_without_a_traceback_of_ours(start: Start) -> None:
    run = start("reward=mistake-on-all", launcher=TORCHRUN)
    assert run.wait() != 0
    assert run.err.count("\nerror: found no gold; dig elsewhere") == 1
    assert "fake_trainer.py" not in run.err
    assert run.leaves_no_process()
