"""What SLURM's programs print about jobs."""

from pathlib import Path

import pytest

from archon_slurm.states import parse_job

LINE = (
    "JobId={id} JobName=e/t/trainer UserId=u(1) MCS_label=N/A Priority=1 JobState={state} Reason={reason} "
    "Dependency=(null) Requeue=1 Restarts={restarts} BatchFlag=1 ExitCode={code} RunTime=00:00:01 "
    "ReqNodeList=(null) ExcNodeList=(null) NodeList={nodes} BatchHost=n1 NumNodes=2\n"
)


def line(*, state: str, reason: str = "None", restarts: int = 0, code: str = "0:0", nodes: str = "n[1-2]") -> str:
    return LINE.format(id=12, state=state, reason=reason, restarts=restarts, code=code, nodes=nodes)


def test_a_running_job_has_hosts_and_attempts() -> None:
    job = parse_job(line(state="RUNNING", restarts=2))
    assert (job.id, job.hosts, job.restarts, job.has_ended, job.waits) == ("12", ("n1", "n2"), 2, False, False)
    assert str(job) == "job 12 is RUNNING"


def test_a_waiting_job_says_why() -> None:
    job = parse_job(line(state="PENDING", reason="Resources", nodes="(null)"))
    assert job.waits
    assert not job.has_ended
    assert job.hosts == ()
    assert str(job) == "job 12 is PENDING (Resources)"


@pytest.mark.parametrize(("state", "code"), [("FAILED", "7:0"), ("CANCELLED", "0:15"), ("TIMEOUT", "0:0")])
def test_ended_jobs_have_a_code_or_a_signal(state: str, code: str) -> None:
    job = parse_job(line(state=state, code=code))
    assert job.has_ended
    assert f"{job.code}:{job.signal}" == code


@pytest.mark.parametrize("state", ["COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED", "STAGE_OUT"])
def test_a_passing_state_is_no_end(state: str) -> None:
    assert not parse_job(line(state=state)).has_ended


def test_values_may_have_spaces_and_equals_signs() -> None:
    text = line(state="RUNNING").strip() + (
        " Command=/my runs/a=b/trainer.sh WorkDir=/my runs Comment=lr=1 JobState=FAILED "
        "StdOut=/my runs/e/t/logs/job-12.log TresPerNode=gres:gpu:2 "
    )
    job = parse_job(text)
    assert (job.state, job.output) == ("RUNNING", "/my runs/e/t/logs/job-12.log")
    assert job.belongs_to(Path("/my runs/e/t"))
    assert not job.belongs_to(Path("/my"))


def test_a_job_belongs_to_a_run_although_scontrol_shows_percent_signs_in_its_own_way() -> None:
    job = parse_job(line(state="RUNNING").strip() + " StdOut=/runs/50%% of %root's/e/t/logs/job-12.log Power=")
    assert job.belongs_to(Path("/runs/50% of %u's/e/t"))
    assert not job.belongs_to(Path("/runs/50% of %u's/e/u"))
    assert not job.belongs_to(Path("/runs/60% of %u's/e/t"))
    assert not parse_job(line(state="RUNNING")).belongs_to(Path())
