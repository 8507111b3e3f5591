"""``archon slurm``: what it prints and asks of SLURM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from archon_core.errors import ConfigError
from archon_slurm.cli import app
from archon_slurm.jobs_file import JobsFile
from archon_slurm.server_job import TrainerWatch

from .conftest import FakeSlurm, Run


class TestCommands:
    @pytest.fixture
    def jobs(self, run: Run, slurm: FakeSlurm) -> JobsFile:
        jobs = JobsFile(run.folder / "slurm")
        jobs.set_trainer("8")
        jobs.add_server(0, "9")
        for id in ("8", "9"):
            slurm.set_job(id, StdOut=run.folder / "logs" / f"job-{id}.log")
        (run.folder / "slurm" / "server.sh").write_text("#!/bin/bash\n")
        return jobs

    def call(self, *arguments: object) -> Any:
        return CliRunner().invoke(app, [*map(str, arguments)])

    def test_status_lists_the_jobs(self, run: Run, jobs: JobsFile, slurm: FakeSlurm) -> None:
        done = self.call("status", run.folder)
        assert done.exit_code == 0
        assert [line.split()[:3] for line in done.stdout.splitlines()[1:]] == [
            ["trainer", "8", "RUNNING"],
            ["server", "0", "9"],
        ]
        slurm.set_job("8", JobState="COMPLETED")
        assert self.call("status", run.folder, "--json").exit_code == 1, "scripts wait for the end of a run"

    def test_scale_adds_servers_with_free_numbers_and_ends_the_last_ones(
        self, run: Run, jobs: JobsFile, slurm: FakeSlurm
    ) -> None:
        assert self.call("scale", run.folder, 3).exit_code == 0
        assert slurm.calls == [f"sbatch --parsable --export=ALL,ARCHON_SERVER_NUMBER={number}" for number in (1, 2)]
        slurm.set_job("1", StdOut="x")
        slurm.set_job("2", StdOut="x", JobState="FAILED", Reason="NonZeroExitCode")
        done = self.call("scale", run.folder, 1)
        assert "server 2 is gone: job 2 is FAILED (NonZeroExitCode)" in done.stdout
        assert slurm.calls[-1] == "scancel 1"
        assert jobs.read().servers == {0: "9"}

    def test_jobs_of_another_run_are_left_alone(self, run: Run, jobs: JobsFile, slurm: FakeSlurm) -> None:
        for id in ("8", "9"):
            slurm.set_job(id, StdOut=f"/elsewhere/logs/job-{id}.log")
        assert self.call("cancel", run.folder).stdout == "cancelled: nothing\n"
        done = self.call("scale", run.folder, 3)
        assert isinstance(done.exception, ConfigError)
        assert "found no running trainer" in str(done.exception)
        assert slurm.calls == []

    def test_cancel_ends_all_jobs(self, run: Run, jobs: JobsFile, slurm: FakeSlurm) -> None:
        assert self.call("cancel", run.folder).stdout == "cancelled: 8, 9\n"
        assert slurm.calls == ["scancel 8 9"]

    def test_a_damaged_list_of_jobs_is_named(self, run: Run, jobs: JobsFile, slurm: FakeSlurm) -> None:
        path = run.folder / "slurm" / "jobs.json"
        path.write_text(path.read_text()[:-4])
        done = self.call("status", run.folder)
        assert isinstance(done.exception, ConfigError)
        assert f"{path}: cannot read it (JSONDecodeError" in str(done.exception)
        watch = TrainerWatch(run.folder / "slurm", 60.0)
        assert not watch.has_ended(), "a server does not end for that"

    def test_a_folder_without_jobs_is_refused(self, tmp_path: Path, slurm: FakeSlurm) -> None:
        done = self.call("status", tmp_path)
        assert "found no slurm/jobs.json" in str(done.exception)

    def test_the_printed_script_is_the_template(self) -> None:
        assert self.call("script").stdout.startswith("#!/bin/bash\n# {{title}}\n{{directives}}\n")
