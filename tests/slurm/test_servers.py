"""Inference servers as jobs of their own: they join the trainer, come and go while it runs, and end with it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

from cluster_runs import Runs, until

from .conftest import Started

RL = (
    "algorithm=grpo",
    "reward=arithmetic",
    "data.dataset=arithmetic",
    "data.path=null",
    "data.batch_size=4",
    "actor.backend=archon:d1",
    "cluster.n_nodes=3",
    "rollout.backend=served:d2",
    "rollout.min_servers=1",
    "rollout.health_check_interval_seconds=0.5",
    "rollout.topology_change_cooldown_seconds=0",
    "gconfig.n_samples=2",
    "gconfig.max_new_tokens=4",
    "trainer.max_steps=10000",
)


def scale(run: Started, servers: int) -> str:
    command = [sys.executable, "-m", "archon_core.cli", "slurm", "scale", str(run.folder), str(servers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def running_jobs() -> set[str]:
    states = "--states=PENDING,RUNNING,COMPLETING"
    done = subprocess.run(["squeue", "--noheader", "--format=%i", states], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def joined(run: Started) -> int:
    """How many times a server joined the trainer."""
    return len(re.findall(r"\S+:\d+ joined", run.text))


def test_servers_are_jobs_that_come_and_go_and_end_with_the_trainer(runs: Runs) -> None:
    run = runs.start("servers", *RL)
    run.until(lambda: joined(run) == 2, "two servers")
    assert "rollout.weight_transport null disk" in run.text, "memory of another machine is out of reach"
    assert "server 2" in scale(run, 3)
    run.until(lambda: joined(run) == 3, "a third server")
    assert "server 2 ends" in scale(run, 1)
    run.until(lambda: len(re.findall(r"\S+:\d+ left:", run.text)) == 2, "two servers leaving")
    # Nobody is left who could cancel the remaining server: it notices that the trainer has ended.
    os.kill(run.process.pid, signal.SIGKILL)
    jobs = json.loads((run.folder / "slurm" / "jobs.json").read_text(encoding="utf-8"))
    subprocess.run(["scancel", jobs["trainer"]], check=True)
    until(lambda: not running_jobs(), "a server is left")
