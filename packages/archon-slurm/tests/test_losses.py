"""Machines that are lost, and machines that only seem to be."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest

from archon_core.contracts.scheduling import SchedulingSpec
from archon_core.ranks.local_ranks import RankStatus
from archon_slurm import client, following
from archon_slurm.attempt import End, NodeStatus
from archon_slurm.jobs_file import JobsFile
from archon_slurm.launcher import MOST_LOSSES
from archon_slurm.options import SlurmOptions
from archon_slurm.server_job import TrainerWatch
from archon_slurm.states import JobState

from .conftest import FakeSlurm, Run


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports that a test does not write never come."""
    monkeypatch.setattr(following, "REPORT_SECONDS", 0.1)


def test_a_machine_that_died_with_the_job_is_avoided(slurm: FakeSlurm, run: Run) -> None:
    slurm.set_job("1", JobState="NODE_FAIL")
    run.report(run.attempt(), 1, 1, 1, 1, ended=(True, False))
    launcher = run.launcher(SchedulingSpec(exclude="n[7-8]"))
    original, seen = client.requeue, []

    def requeue(id: str, *, exclude: Any = ()) -> None:
        original(id, exclude=exclude)
        seen.append(list(exclude))
        slurm.set_job(id, JobState="COMPLETED", Restarts=1)
        run.report(run.attempt(1), 0, 0, 0, 0)

    client.requeue = requeue  # type: ignore[assignment]
    try:
        assert {exit.code for exit in launcher.run(resume=False)} == {0}
    finally:
        client.requeue = original
    assert seen == [["n7", "n8", "n2"]], "SLURM replaces the list"
    assert slurm.calls[-2:] == ["scontrol requeue 1", "scontrol update jobid=1 excnodelist=n7,n8,n2"]
    assert any(note.startswith("n2 lost; job 1 is started again") for note in run.notes)


def test_a_machine_whose_ranks_end_slowly_after_a_failure_is_not_lost(
    slurm: FakeSlurm, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.set_job("1")
    attempt = run.attempt()
    run.report(attempt, 7, 7, 0, 0, ended=(True, False))
    attempt.write_end(End("failure", 0, reason="rank 0 ended with code 7"))
    original, questions = client.job_state, itertools.count(1)

    def job_state(id: str) -> JobState:
        beat = next(questions)
        ended = beat > 8
        ranks = [RankStatus(rank, 100 + rank, -9 if ended else None, 2.0, ended) for rank in (2, 3)]
        attempt.write_status(NodeStatus(1, "n2", beat, ended, ranks))
        return original(id)

    monkeypatch.setattr(client, "job_state", job_state)
    exits = run.launcher().run(resume=False)
    assert [(exit.rank, exit.code) for exit in exits] == [(0, 7), (1, 7)]
    assert slurm.calls == ["sbatch --parsable"]


def test_a_run_that_loses_one_machine_after_another_without_a_checkpoint_ends(
    slurm: FakeSlurm, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run.folder / "checkpoints" / "step-00000001").mkdir(parents=True)
    restarts = []

    def requeue(id: str, *, exclude: Any = ()) -> None:
        restarts.append(id)
        if len(restarts) == 2:
            (run.folder / "checkpoints" / "step-00000002").mkdir()
        lose(len(restarts))

    def lose(attempt: int) -> None:
        slurm.set_job("1", JobState="FAILED", Restarts=attempt)
        run.attempt(attempt).write_status(NodeStatus(1, f"m{attempt}", 1, False, [RankStatus(2, 5), RankStatus(3, 6)]))

    monkeypatch.setattr(client, "requeue", requeue)
    lose(0)
    exits = run.launcher().run(resume=False)
    assert len(restarts) == 2 + MOST_LOSSES
    assert any(exit.cause == "m5 does not report any more" for exit in exits)
    assert run.notes[-1].startswith("m5 lost; the run ends, because it lost machines 4 times without a new checkpoint")


@pytest.mark.parametrize("requeue", [True, False])
def test_a_preempted_job_that_slurm_does_not_requeue_is_requeued(
    slurm: FakeSlurm, run: Run, monkeypatch: pytest.MonkeyPatch, requeue: bool
) -> None:
    """``PreemptMode=CANCEL``."""
    run.options = SlurmOptions(poll_seconds=0.05, requeue=requeue)
    slurm.set_job("1", JobState="PREEMPTED")
    run.report(run.attempt(), 143, 143, 143, 143)
    requeued = []

    def requeue_job(id: str, *, exclude: Any = ()) -> None:
        requeued.append((id, list(exclude)))
        slurm.set_job(id, JobState="COMPLETED", Restarts=1)
        run.report(run.attempt(1), 0, 0, 0, 0)

    monkeypatch.setattr(client, "requeue", requeue_job)
    exits = run.launcher().run(resume=False)
    assert {exit.code for exit in exits} == ({0} if requeue else {143})
    assert requeued == ([("1", [])] if requeue else [])


def test_servers_end_when_the_trainers_job_has_ended_or_was_never_submitted(slurm: FakeSlurm, run: Run) -> None:
    jobs = JobsFile(run.folder / "slurm")
    never, patient = (TrainerWatch(run.folder / "slurm", patience) for patience in (0.01, 60.0))
    while not never.has_ended():
        time.sleep(0.01)
    assert not patient.has_ended()
    jobs.set_trainer("1")
    slurm.set_job("1")
    watch = TrainerWatch(run.folder / "slurm", 0.01)
    for _ in range(5):
        assert not watch.has_ended()
        time.sleep(0.01)
    slurm.set_job("1", JobState="COMPLETED")
    while not watch.has_ended():
        time.sleep(0.01)


def test_without_requeueing_a_lost_machine_ends_the_run_with_its_name(slurm: FakeSlurm, run: Run) -> None:
    run.options = SlurmOptions(poll_seconds=0.05, node_timeout=5, requeue=False)
    slurm.set_job("1", JobState="NODE_FAIL")
    run.attempt().write_status(NodeStatus(1, "n2", 1, False, [RankStatus(2, 5), RankStatus(3, 6)]))
    exits = run.launcher().run(resume=False)
    causes = {exit.rank: exit.cause for exit in exits}
    assert causes[0] == "job 1 is NODE_FAIL"
    assert causes[2] == "n2 does not report any more"
