"""The launcher of ``scheduler.type: slurm``: submits jobs, follows them, and ends them.

The first Ctrl-C sends the signal to the ranks, which stop after their step; the second one cancels the jobs. A restart
requeues the trainer's job, which keeps its number and gets another attempt.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from archon_core.contracts.launching import Launch, Part
from archon_core.layout.diagnostics import count
from archon_core.ranks.first_failure import RankExit
from archon_slurm import client
from archon_slurm.attempt import Attempt, End, TrainerJob, attempt_folder
from archon_slurm.client import SlurmError
from archon_slurm.output import FollowedFile
from archon_slurm.script import JobRequest, render_script
from archon_slurm.states import JobState

STEP_SECONDS = 0.2
"""Time between two looks at the run folder."""

END_SECONDS = 30.0
"""Time that SLURM gets to end a job whose machines have all reported their ends, before it is cancelled."""


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
            client.requeue(self._job, exclude=self._lost_hosts)
            self._restarts += 1
        return self._follow()

    def close(self) -> None:
        """Cancel what still runs."""
        if self._job and not client.job_state(self._job).has_ended:
            client.cancel([self._job])

    def _submit(self, *, resume: bool) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        # The jobs may start in days: the user may have edited the file by then.
        source = self._folder / f"config{self._launch.source.suffix}"
        shutil.copyfile(self._launch.source, source)
        more = ["--resume"] if resume else []
        command = [sys.executable, "-P", "-m", "archon_core.cli", "train", str(source), *self._launch.overrides, *more]
        path = self._folder / "trainer.json"
        part = self._trainer
        TrainerJob(
            command, part.ranks_by_node, str(self._logs), dict(part.environment), self._options.node_timeout
        ).write(path)
        script = render_script(self._request(part, path), self._options)
        (self._folder / "trainer.sh").write_text(script, encoding="utf-8")
        self._job = client.submit(script)
        size = f"{count(len(part.processes), 'rank')} on {count(len(part.nodes), 'machine')}"
        self._launch.note(f"job {self._job}: {size}; logs in {self._logs / f'job-{self._job}'}")

    def _request(self, part: Part, path: Path) -> JobRequest:
        config = self._launch.config
        name = f"{config.experiment_name}/{config.trial_name}/{part.name}"
        most = max(map(len, part.ranks_by_node))
        return JobRequest(
            name=name.replace(" ", "-"),
            title=f"{part.name} of {config.experiment_name}/{config.trial_name}: {part.layout}",
            nodes=len(part.nodes),
            command=[sys.executable, "-P", "-m", "archon_slurm.agent", str(path)],
            output=self._logs / "job-%j.log",
            folder=Path.cwd(),
            devices=most if self._launch.plan.devices_per_node else 0,
            requeue=self._options.requeue,
        )

    def _follow(self) -> list[RankExit]:
        """Follow the job to the end of an attempt that is not started again."""
        stop = self._launch.stop
        forwarded = False
        told = ""
        state = client.job_state(self._job)
        attempt = self._attempt(state)
        output = FollowedFile(attempt.log(0))
        next_question = 0.0
        while True:
            if stop.insisted:
                return self._kill(attempt)
            if stop.number is not None and not forwarded:
                forwarded = True
                if state.waits:
                    return self._kill(attempt)
                attempt.write_end(End("stop", signal=stop.number))
            for line in output.lines():
                print(line, end="", flush=True)
            if time.monotonic() >= next_question:
                next_question = time.monotonic() + self._options.poll_seconds
                state = self._ask(state)
                if str(state) != told:
                    told = str(state)
                    self._launch.note(told)
                if state.has_ended:
                    break
            time.sleep(STEP_SECONDS)
        for line in output.lines():
            print(line, end="", flush=True)
        return self._exits(attempt, state)

    def _attempt(self, state: JobState) -> Attempt:
        return Attempt(attempt_folder(self._logs, self._job, state.restarts))

    def _ask(self, last: JobState) -> JobState:
        try:
            return client.job_state(self._job)
        except SlurmError as error:
            self._launch.note(f"{error}; asking again")
            return last

    def _kill(self, attempt: Attempt) -> list[RankExit]:
        attempt.write_end(End("kill"))
        client.cancel([self._job])
        return []

    def _exits(self, attempt: Attempt, state: JobState) -> list[RankExit]:
        ranks = self._trainer.ranks_by_node
        lost = dict.fromkeys(range(len(ranks)), str(state))
        return attempt.exits(len(ranks), ranks, lost=lost)
