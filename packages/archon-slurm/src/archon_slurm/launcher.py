"""The launcher of ``scheduler.type: slurm``: submits jobs, follows them, and ends them.

The first Ctrl-C reaches the ranks, which stop after their step; the second one cancels the jobs. A restart requeues the
trainer's job, which keeps its number and gets another attempt; the servers go on.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from archon_core.contracts.launching import Launch, Part
from archon_core.errors import ConfigError
from archon_core.layout.diagnostics import count
from archon_core.plugins import registry
from archon_core.plugins.transport_choice import choose_transport_between_machines
from archon_core.ranks.first_failure import RankExit
from archon_core.ranks.host_list import expand_hosts
from archon_slurm import client
from archon_slurm.attempt import TrainerJob
from archon_slurm.client import SlurmError
from archon_slurm.following import Follower
from archon_slurm.jobs_file import JobsFile
from archon_slurm.resources import directives, in_container, srun_options
from archon_slurm.script import JobRequest, literally, render_script
from archon_slurm.server_job import ServerJob
from archon_slurm.server_jobs import SCRIPT, ServerJobs

ENDING_SECONDS = 60.0
"""Time for cancelled jobs of an earlier start of the run to end."""

MOST_LOSSES = 3
"""Losses of machines in a row without a new checkpoint after which the run still starts again. More are no accident:
something in the run ends its machines, or keeps them from reporting."""


class SlurmLauncher:
    """Implements ``archon_core.contracts.launching.Launcher``.

    Args:
        launch: the run.
    """

    def __init__(self, launch: Launch) -> None:
        client.check_programs()
        self._launch = launch
        self._options = launch.config.slurm
        self._trainer = launch.plan.trainer
        self._server_parts = [part for part in launch.plan if part.kind == "server"]
        self._folder = launch.folder / "slurm"
        self._logs = launch.folder / "logs"
        self._jobs = JobsFile(self._folder)
        self._servers = ServerJobs(self._folder, launch.note)
        self._job = ""
        self._has_begun = False
        self._restarts = 0
        self._excluded = expand_hosts(self._trainer.scheduling.exclude or "")

    def run(self, *, resume: bool) -> Sequence[RankExit]:
        """Submit the jobs, or requeue the trainer's, and follow that to its end."""
        if not self._job:
            self._submit(resume=resume)
        else:
            self._start_again()
        losses, progress = 0, self._checkpoints()
        while True:
            outcome = self._follower().follow()
            self._excluded += outcome.hosts
            ended = outcome.kind in ("ended", "killed")
            if ended or not self._options.requeue or self._launch.stop.number is not None:
                return outcome.exits
            reason = f"{', '.join(outcome.hosts)} lost" if outcome.kind == "lost" else "preempted"
            before, progress = progress, self._checkpoints()
            if progress != before or outcome.kind == "preempted":
                losses = 0
            losses += outcome.kind == "lost"
            if losses > MOST_LOSSES:
                self._launch.note(
                    f"{reason}; the run ends, because it lost machines {losses} times without a new checkpoint"
                )
                return outcome.exits
            # After the loss of a machine, SLURM would do the same, but it notices minutes later.
            self._launch.note(f"{reason}; job {self._job} is started again, without lost machines")
            self._start_again()

    def close(self) -> None:
        """Cancel what still runs: servers, and a trainer that does not end by itself."""
        try:
            if self._job and not client.job_state(self._job).has_ended:
                client.cancel([self._job])
            if self._server_parts and self._has_begun:
                self._servers.cancel()
        except SlurmError as error:
            jobs = ", ".join(self._jobs.read().all)
            self._launch.note(f"{error}; cancel the jobs that still run with scancel: {jobs}")

    def _checkpoints(self) -> frozenset[str]:
        """Names of the run's checkpoints."""
        folder = self._launch.folder / "checkpoints"
        return frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()

    def _submit(self, *, resume: bool) -> None:
        self._check_no_other()
        for folder in (self._folder, self._logs):
            folder.mkdir(parents=True, exist_ok=True)
        self._jobs.clear()
        self._has_begun = True
        # The jobs may start in days: the user may have edited the file by then. The command to resume names the copy.
        source = self._folder / f"config{self._launch.source.suffix}"
        if not (source.exists() and source.samefile(self._launch.source)):
            shutil.copyfile(self._launch.source, source)
        overrides, servers = [*self._launch.overrides], []
        if self._server_parts:
            servers = self._submit_servers(source)
            overrides += ["rollout.start_servers=false", f"rollout.weight_transport={self._transport()}"]
        more = ["--resume"] if resume else []
        self._write_trainer(["-P", "-m", "archon_core.cli", "train", str(source), *overrides, *more])
        part = self._trainer
        path = self._folder / "trainer.sh"
        command = ["-P", "-m", "archon_slurm.agent", str(self._folder / "trainer.json")]
        path.write_text(self._script(part, command, after=servers), encoding="utf-8")
        self._submit_trainer()
        size = f"{count(len(part.processes), 'rank')} on {count(len(part.nodes), 'machine')}"
        self._launch.note(f"job {self._job}: {size}; logs in {self._logs / f'job-{self._job}'}")

    def _check_no_other(self) -> None:
        """Raise ConfigError if jobs of an earlier start of this run are left: they would read what this one writes."""
        deadline = time.monotonic() + ENDING_SECONDS
        for id in self._jobs.read().all:
            while not (state := client.job_state(id)).has_ended and state.belongs_to(self._launch.folder):
                if state.state != "COMPLETING" or time.monotonic() > deadline:
                    raise ConfigError(
                        f"{self._launch.folder}: found {state}, of an earlier start of this run; wait for it, or end "
                        f"it with `{shlex.join(['archon', 'slurm', 'cancel', str(self._launch.folder)])}`"
                    )
                time.sleep(1)

    def _write_trainer(self, command: Sequence[str]) -> None:
        part = self._trainer
        environment = dict(part.scheduling.env_vars)
        job = TrainerJob(command, part.ranks_by_node, str(self._logs), environment, self._options.node_timeout)
        job.write(self._folder / "trainer.json")

    def _submit_trainer(self, *options: str) -> None:
        self._job = client.submit((self._folder / "trainer.sh").read_text(encoding="utf-8"), *options)
        self._restarts = 0
        self._jobs.set_trainer(self._job)

    def _submit_servers(self, source: Path) -> list[str]:
        part = self._server_parts[0]
        path = self._folder / "server.json"
        patience = 2 * self._options.node_timeout
        folder, environment = str(self._launch.folder), dict(part.scheduling.env_vars)
        ServerJob(str(source), list(self._launch.overrides), folder, environment, patience).write(path)
        script = self._script(part, ["-P", "-m", "archon_slurm.server_job", str(path)])
        (self._folder / SCRIPT).write_text(script, encoding="utf-8")
        return self._servers.submit(len(self._server_parts))

    def _transport(self) -> str:
        asked, layout = self._launch.config.rollout.weight_transport, self._server_parts[0].layout
        return choose_transport_between_machines(asked, layout, registry())

    def _start_again(self) -> None:
        """Requeue the trainer's job, unless SLURM has; if it may not be requeued, submit another one."""
        found = client.job_state(self._job).restarts
        if found > self._restarts:
            self._restarts = found
            return
        if self._options.requeue:  # otherwise SLURM would refuse it, too
            try:
                client.requeue(self._job, exclude=self._excluded)
            except SlurmError as error:
                self._launch.note(f"{error}; another job is submitted")
            else:
                self._restarts += 1
                return
        client.cancel([self._job])
        command = TrainerJob.read(self._folder / "trainer.json").command
        self._write_trainer([*command, *([] if "--resume" in command else ["--resume"])])
        self._submit_trainer(*([f"--exclude={','.join(self._excluded)}"] if self._excluded else []))
        self._launch.note(f"job {self._job}: resumes from the last checkpoint")

    def _script(self, part: Part, command: Sequence[str], *, after: Sequence[str] = ()) -> str:
        config = self._launch.config
        run = f"{config.experiment_name}/{config.trial_name}"
        name = "server" if part.kind == "server" else part.name
        here = [[process for process in part.processes if process.node == node] for node in part.nodes]
        devices = max(sum(len(process.devices) for process in processes) for processes in here)
        spec, processes = part.scheduling, max(devices, *map(len, here))
        job = JobRequest(
            name=f"{run}/{name}",
            title=f"{name} of {run}: {part.layout}",
            nodes=len(part.nodes),
            command=in_container(sys.executable, command, spec, devices=devices),
            output=f"{literally(self._logs)}/{'server-' if part.kind == 'server' else ''}job-%j.log",
            folder=Path.cwd(),
            devices=devices,
            directives=directives(spec, processes),
            srun=srun_options(spec, processes),
            requeue=self._options.requeue and part.kind == "ranks",
            after=after,
        )
        return render_script(job, self._options)

    def _follower(self) -> Follower:
        return Follower(
            self._job,
            self._trainer.ranks_by_node,
            self._logs,
            stop=self._launch.stop,
            note=self._launch.note,
            poll_seconds=self._options.poll_seconds,
            node_timeout=self._options.node_timeout,
            attempt=self._restarts,
            look=self._servers.forget_ended if self._server_parts else lambda: None,
        )
