"""The launcher of ``scheduler.type: slurm``: submits jobs, follows them, and ends them.

The first Ctrl-C reaches the ranks, which stop after their step; the second one cancels the jobs. A restart requeues the
trainer's job, which keeps its number and gets another attempt.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from archon_core.contracts.launching import Launch, Part
from archon_core.layout.diagnostics import count
from archon_core.ranks.first_failure import RankExit
from archon_slurm import client
from archon_slurm.attempt import TrainerJob
from archon_slurm.following import Follower
from archon_slurm.script import JobRequest, render_script


class SlurmLauncher:
    """Implements ``archon_core.contracts.launching.Launcher``.

    Args:
        launch: the run.
    """

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._options = launch.config.slurm
        self._trainer = next(part for part in launch.plan if part.kind == "ranks")
        self._folder = launch.folder / "slurm"
        self._logs = launch.folder / "logs"
        self._job = ""
        self._restarts = 0
        self._lost_hosts: list[str] = []

    def run(self, *, resume: bool) -> Sequence[RankExit]:
        """Submit the trainer's job, or requeue it, and follow it to its end."""
        if not self._job:
            self._submit(resume=resume)
        else:
            self._requeue()
        while True:
            outcome = self._follower().follow()
            self._lost_hosts += outcome.hosts
            if outcome.kind != "lost" or not self._options.requeue or self._launch.stop.number is not None:
                return outcome.exits
            # SLURM would do the same, but it notices minutes later that a machine is gone.
            self._launch.note(f"{', '.join(outcome.hosts)} lost; job {self._job} is started again on other machines")
            self._requeue()

    def close(self) -> None:
        """Cancel what still runs."""
        if self._job and not client.job_state(self._job).has_ended:
            client.cancel([self._job])

    def _submit(self, *, resume: bool) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        # The job may start in days: the user may have edited the file by then.
        source = self._folder / f"config{self._launch.source.suffix}"
        shutil.copyfile(self._launch.source, source)
        more = ["--resume"] if resume else []
        command = [sys.executable, "-P", "-m", "archon_core.cli", "train", str(source), *self._launch.overrides, *more]
        path, part = self._folder / "trainer.json", self._trainer
        environment = dict(part.environment)
        TrainerJob(command, part.ranks_by_node, str(self._logs), environment, self._options.node_timeout).write(path)
        script = render_script(self._request(part, path), self._options)
        (self._folder / "trainer.sh").write_text(script, encoding="utf-8")
        self._job = client.submit(script)
        size = f"{count(len(part.processes), 'rank')} on {count(len(part.nodes), 'machine')}"
        self._launch.note(f"job {self._job}: {size}; logs in {self._logs / f'job-{self._job}'}")

    def _requeue(self) -> None:
        """Start the job again, unless SLURM has."""
        found = client.job_state(self._job).restarts
        if found == self._restarts:
            client.requeue(self._job, exclude=self._lost_hosts)
            found += 1
        self._restarts = found

    def _request(self, part: Part, path: Path) -> JobRequest:
        config = self._launch.config
        run = f"{config.experiment_name}/{config.trial_name}"
        most = max(map(len, part.ranks_by_node))
        return JobRequest(
            name=f"{run}/{part.name}".replace(" ", "-"),
            title=f"{part.name} of {run}: {part.layout}",
            nodes=len(part.nodes),
            command=[sys.executable, "-P", "-m", "archon_slurm.agent", str(path)],
            output=self._logs / "job-%j.log",
            folder=Path.cwd(),
            devices=most if self._launch.plan.devices_per_node else 0,
            requeue=self._options.requeue,
        )

    def _follower(self) -> Follower:
        return Follower(
            self._job,
            self._trainer.ranks_by_node,
            self._logs,
            stop=self._launch.stop,
            note=self._launch.note,
            poll_seconds=self._options.poll_seconds,
            node_timeout=self._options.node_timeout,
        )
