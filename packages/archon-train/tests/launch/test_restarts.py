"""Ranks that die are started again from the last checkpoint, as often as was allowed, and only when it may help."""

from __future__ import annotations

import json
import re

import pytest

from .conftest import TORCHRUN, Start


def steps(rows: list[str]) -> list[int]:
    return [json.loads(row)["step"] for row in rows]


@pytest.mark.parametrize("layout", ["d1", "d2"])
def test_ranks_go_on_from_the_last_checkpoint_after_one_was_killed(start: Start, layout: str) -> None:
    run = start("reward=die-once", "trainer.max_restarts=1", "trainer.save_every=2", f"actor.backend=archon:{layout}")
    assert run.wait() == 0, run.err
    n_ranks = int(layout[1:])
    told = rf"restart 1 of 1: rank {n_ranks - 1} of {n_ranks} \(process \d+\) was killed first, by SIGKILL"
    assert re.search(told, run.err)
    assert "all ranks restart from step 2" in run.err
    assert "error: " not in run.err
    assert steps(run.rows()) == [1, 2, 3, 4, 5], "the third step, done twice, is there once"
    assert (run.folder / "logs/start-2").is_dir()
    assert run.leaves_no_process()


def test_ranks_that_left_no_checkpoint_begin_again(start: Start) -> None:
    run = start("reward=die-once", "trainer.max_restarts=3", "actor.backend=archon:d1")
    assert run.wait() == 0, run.err
    assert "restart 1 of 3: " in run.err
    assert "all ranks restart from the beginning, since there is no checkpoint yet" in run.err
    assert steps(run.rows()) == [1, 2, 3, 4, 5]


def test_restarts_end_when_they_are_used_up(start: Start) -> None:
    raised = start("reward=raise-on-1", "trainer.max_restarts=1")
    assert raised.wait() == 1
    assert raised.err.count("restart 1 of 1: ValueError: found no gold") == 1
    assert "rank 1: Traceback" in raised.err.partition("restart 1 of 1")[0]
    assert raised.last_lines.startswith("error: ValueError: found no gold\n")
    assert raised.leaves_no_process()


@pytest.mark.wide
def test_another_launchers_ranks_are_restarted_by_that_launcher(start: Start) -> None:
    run = start("trainer.max_restarts=1", "trainer.save_every=2", launcher=TORCHRUN)
    assert run.wait() == 0, run.err
    (row,) = (row for row in json.loads((run.folder / "decisions.json").read_text()) if "max_restarts" in row["option"])
    assert (row["requested"], row["effective"]) == ("1", "0")
    assert "with torchrun, use --max-restarts" in row["reason"]
