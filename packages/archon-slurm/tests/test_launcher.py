"""What the launcher asks of SLURM, with programs that only record it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from archon_core.contracts.launching import Part, Process, ProcessPlan
from archon_core.contracts.scheduling import SchedulingSpec
from archon_core.errors import ConfigError
from archon_core.layout import parse_layout
from archon_core.ranks.first_failure import explain
from archon_slurm import client
from archon_slurm.checks import check_run
from archon_slurm.jobs_file import JobsFile
from archon_slurm.options import SlurmOptions

from .conftest import FakeSlurm, Run, Stop


def test_a_run_becomes_a_job_and_its_output_is_shown(
    slurm: FakeSlurm, run: Run, capsys: pytest.CaptureFixture[str], read_json: Callable[[Path], Any]
) -> None:
    slurm.set_job("1", JobState="COMPLETED")
    attempt = run.attempt()
    attempt.log(0).write_text("step 1\nhalf a li")
    run.report(attempt, 0, 0, 0, 0)
    exits = run.launcher(SchedulingSpec(cpu=2, env_vars={"A": "b"})).run(resume=False)
    assert [(exit.rank, exit.code, exit.host) for exit in exits] == [
        (0, 0, "n1"),
        (1, 0, "n1"),
        (2, 0, "n2"),
        (3, 0, "n2"),
    ]
    assert capsys.readouterr().out == "step 1\n"
    assert slurm.calls == ["sbatch --parsable"]
    assert {"#SBATCH --nodes=2", "#SBATCH --gres=gpu:2", "#SBATCH --cpus-per-task=4"} <= {*slurm.script.splitlines()}
    assert slurm.script == (run.folder / "slurm" / "trainer.sh").read_text()
    job = read_json(run.folder / "slurm" / "trainer.json")
    copy = run.folder / "slurm" / "config.yaml"
    assert job["command"] == ["-P", "-m", "archon_core.cli", "train", str(copy), "a.b=1"]
    assert copy.read_text() == "seed: 1\n", "later changes of the user's file do not matter"
    assert (job["ranks_by_node"], job["environment"]) == ([[0, 1], [2, 3]], {"A": "b"})
    assert run.notes[0].startswith("job 1: 4 ranks on 2 machines; logs in ")


def critic(scheduling: SchedulingSpec) -> Part:
    """A critic on one further device of each machine."""
    processes = (Process(0, 0, (2,)), Process(1, 1, (2,)))
    return Part("critic", ("critic",), parse_layout("archon:d2"), processes, scheduling=scheduling)


def test_the_ranks_of_a_separated_role_are_in_the_same_job(
    slurm: FakeSlurm, run: Run, read_json: Callable[[Path], Any]
) -> None:
    slurm.set_job("1", JobState="COMPLETED")
    launcher = run.launcher(SchedulingSpec(cpu=2), critic(SchedulingSpec()))
    run.report(run.attempt(), 0, 0, 0, 0)
    launcher.run(resume=False)
    assert read_json(run.folder / "slurm" / "trainer.json")["ranks_by_node"] == [[0, 1, 4], [2, 3, 5]]
    assert {"#SBATCH --gres=gpu:3", "#SBATCH --cpus-per-task=6"} <= {*slurm.script.splitlines()}


def test_a_separated_role_with_other_resources_is_refused() -> None:
    processes = tuple(Process(rank, 0) for rank in range(2))
    spec = SchedulingSpec(cpu=2)
    actor = Part("trainer", ("actor",), parse_layout("archon:d2"), processes, scheduling=spec)
    config = SimpleNamespace(slurm=SlurmOptions())
    for scheduling, refused in ((spec, False), (SchedulingSpec(), False), (SchedulingSpec(cpu=8), True)):
        found = check_run(config, plan=ProcessPlan((actor, critic(scheduling))), explicit=())
        assert bool(found.problems) == refused
        assert all("critic.scheduling_spec: found other values than" in text for text in found.problems)


def test_the_copy_of_the_configuration_can_be_run_again(slurm: FakeSlurm, run: Run) -> None:
    slurm.set_job("1", JobState="COMPLETED")
    slurm.set_job("2", JobState="COMPLETED")
    run.launcher().run(resume=False)
    copy = run.folder / "slurm" / "config.yaml"
    run.launcher(source=copy).run(resume=True)
    assert copy.read_text() == "seed: 1\n", "an interrupted run names it in the command to resume"


def test_a_refused_job_is_an_error_with_the_option_to_change(slurm: FakeSlurm, run: Run) -> None:
    slurm.refuse("sbatch: error: Invalid generic resource (gres) specification")
    with pytest.raises(ConfigError, match=r"Invalid generic resource[\s\S]*set slurm\.gres to the name"):
        run.launcher().run(resume=False)


def test_without_slurm_the_launcher_says_where_to_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(client.SlurmError, match="found slurm, and no sbatch, srun, scontrol, scancel on this machine"):
        run.launcher()
    plan = ProcessPlan((Part("trainer", ("actor",), parse_layout("archon:d1"), (Process(0, 0),)),))
    (text,) = check_run(SimpleNamespace(slurm=SlurmOptions()), plan=plan, explicit=()).unable
    assert "found slurm, and no sbatch" in text, "a dry run says it, too"


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_a_run_whose_earlier_jobs_are_left_is_not_submitted_again(slurm: FakeSlurm, run: Run, state: str) -> None:
    jobs = JobsFile(run.folder / "slurm")
    jobs.set_trainer("7")
    jobs.add_server(0, "8")
    slurm.set_job("7", JobState=state, StdOut=run.folder / "logs" / "job-7.log")
    server = Part("server 0", ("rollout",), parse_layout("sglang:d1"), (Process(0, 1),), kind="server")
    launcher = run.launcher(None, server)
    command = f"archon slurm cancel {run.folder}"
    with pytest.raises(ConfigError, match=f"found job 7 is {state}, of an earlier start .* `{command}`"):
        launcher.run(resume=True)
    launcher.close()
    assert slurm.calls == [], "they are left alone"
    assert jobs.read().trainer == "7"
    slurm.set_job("7", JobState=state, StdOut="/of/another/run/logs/job-7.log")  # the folder was copied
    slurm.set_job("1", JobState="COMPLETED")
    run.launcher().run(resume=True)
    assert slurm.calls == ["sbatch --parsable"]


def test_options_of_the_run_win_over_variables_of_sbatch(
    slurm: FakeSlurm, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, seen = slurm.folder / "sbatch", slurm.folder / "variables"
    program.write_text(program.read_text(encoding="utf-8").replace("cat >", f"env > {seen}; cat >", 1))
    for name in ("TIMELIMIT", "ACCOUNT", "QOS", "NO_REQUEUE"):
        monkeypatch.setenv(f"SBATCH_{name}", "1")
    run.options = SlurmOptions(poll_seconds=0.05, account="mine", time_limit="10")
    slurm.set_job("1", JobState="COMPLETED")
    run.launcher().run(resume=False)
    assert [line for line in seen.read_text().splitlines() if line.startswith("SBATCH")] == ["SBATCH_QOS=1"]


def test_an_answer_that_is_no_job_is_an_error_of_slurm(slurm: FakeSlurm) -> None:
    (slurm.folder / "job-1").write_text("slurmctld is busy\n", encoding="utf-8")
    with pytest.raises(client.SlurmError, match="scontrol show job 1: found no job in 'slurmctld is busy'"):
        client.job_state("1")


def test_ctrl_c_does_not_reach_the_programs_of_slurm(slurm: FakeSlurm, run: Run) -> None:
    """An ``sbatch`` that Ctrl-C ends may have submitted a job whose id nobody knows."""
    session = slurm.folder / "session"
    program = slurm.folder / "sbatch"
    program.write_text(
        program.read_text(encoding="utf-8").replace("cat >", f"cut -d' ' -f6 /proc/$$/stat > {session}; cat >", 1)
    )
    slurm.set_job("1", JobState="COMPLETED")
    run.launcher().run(resume=False)
    assert int(session.read_text()) not in (0, os.getsid(0))


def test_a_failing_rank_is_returned_and_a_restart_requeues_the_job(slurm: FakeSlurm, run: Run) -> None:
    slurm.set_job("1", JobState="FAILED")
    run.report(run.attempt(), 0, 0, 0, 7)
    launcher = run.launcher()
    assert [exit.rank for exit in launcher.run(resume=False) if exit.failed] == [3]
    slurm.set_job("1", JobState="COMPLETED", Restarts=0)
    launcher.run(resume=True)
    assert slurm.calls == ["sbatch --parsable", "scontrol requeue 1"]


def test_a_job_that_fails_before_its_ranks_start_names_the_output_of_its_script(slurm: FakeSlurm, run: Run) -> None:
    output = run.folder / "logs" / "job-1.log"
    slurm.set_job("1", JobState="FAILED", Reason="NonZeroExitCode", StdOut=output)
    exits = run.launcher().run(resume=False)
    assert explain(exits[0], 4) == (
        f"rank 0 of 4 (no process yet) was lost first: job 1 is FAILED (NonZeroExitCode); its output is in {output}"
    )


def test_a_job_that_slurm_has_requeued_is_not_requeued_again(slurm: FakeSlurm, run: Run) -> None:
    slurm.set_job("1", JobState="FAILED")
    run.report(run.attempt(), 0, 0, 0, 7)
    launcher = run.launcher()
    launcher.run(resume=False)
    slurm.set_job("1", JobState="COMPLETED", Restarts=1)
    run.report(run.attempt(1), 0, 0, 0, 0)
    assert {exit.code for exit in launcher.run(resume=True)} == {0}
    assert slurm.calls == ["sbatch --parsable"]


@pytest.mark.parametrize("requeue", [True, False])
def test_if_a_job_may_not_be_requeued_another_one_resumes(
    slurm: FakeSlurm, run: Run, monkeypatch: pytest.MonkeyPatch, read_json: Callable[[Path], Any], requeue: bool
) -> None:
    monkeypatch.setattr(client, "REQUEUE_SECONDS", 0)
    run.options = replace(run.options, requeue=requeue)
    slurm.set_job("1", JobState="FAILED")
    slurm.set_job("2", JobState="COMPLETED")
    slurm.refuse_requeue()
    run.report(run.attempt(), 0, 0, 0, 7)
    run.report(run.attempt(job="2"), 0, 0, 0, 0)
    launcher = run.launcher()
    launcher.run(resume=False)
    assert {exit.code for exit in launcher.run(resume=True)} == {0}
    assert slurm.calls[-2:] == ["scancel 1", "sbatch --parsable"]
    assert ("scontrol requeue 1" in slurm.calls) == requeue
    assert read_json(run.folder / "slurm" / "trainer.json")["command"][-1] == "--resume"
    assert JobsFile(run.folder / "slurm").read().trainer == "2"


@pytest.mark.parametrize(("state", "insisted"), [("PENDING", False), ("RUNNING", True)])
def test_a_waiting_job_ends_with_the_first_signal_and_a_running_one_with_the_second(
    slurm: FakeSlurm, run: Run, state: str, insisted: bool
) -> None:
    slurm.set_job("1", JobState=state)
    run.stop = Stop(2, insisted)
    launcher = run.launcher()
    assert launcher.run(resume=False) == ()
    launcher.close()
    assert slurm.calls[-1] == "scancel 1"
    end = run.attempt().end()
    assert end is not None
    assert end.kind == "kill"


def test_importing_the_plugin_its_options_and_checks_imports_no_torch() -> None:
    import subprocess

    code = (
        "import sys, archon_slurm.plugin as p, archon_slurm.options, archon_slurm.checks, archon_slurm.agent\n"
        "p.archon_launchers(), p.archon_commands()\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
