"""A critic on its own ranks, in a SLURM job whose run folder has a name that SLURM and the shell read otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from archon_slurm import client
from archon_train.run.metrics import read_metrics
from cluster_runs import Runs, alive

from .conftest import Started

PPO = (
    "algorithm=ppo",
    "reward=arithmetic",
    "rewards.processes=0",
    "data.dataset=arithmetic",
    "data.path=null",
    "data.batch_size=4",
    "actor.kl_ctl=0.0",
    "actor.archon.enable_compile=false",
    "critic={dtype: float64, archon: {enable_compile: false}}",
    "rollout.backend=local",
    "gconfig.n_samples=2",
    "gconfig.max_new_tokens=4",
    "trainer.max_steps=2",
    "trainer.eval_before_train=false",
)
COMPARED = ("loss", "reward", "critic/loss", "critic/explained_variance")


def steps(folder: Path) -> list[dict[str, float]]:
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]
    return [{name: row[name] for name in COMPARED} for row in rows]


def test_a_critic_on_ranks_of_its_own_trains_with_the_numbers_of_one_process(runs: Runs) -> None:
    alone: Started = runs.start("roles-alone", *PPO, "scheduler.type=local", "actor.backend=archon:d1")
    root = runs.folder / "50% #1 of %u's runs"
    apart = ("critic.scheduling_strategy.type=separation", "critic.backend=archon:d1", "actor.backend=archon:d2")
    run: Started = runs.start("roles", *PPO, *apart, f"cluster.fileroot={root}")
    run.folder = root / "e" / "roles"
    assert run.wait() == 0, run.text
    assert alone.wait() == 0, alone.text
    assert [[rank["rank"] for rank in run.node(node)["ranks"]] for node in (0, 1)] == [[0, 2], [1]]
    assert steps(run.folder) == [pytest.approx(row, rel=1e-9, abs=1e-9) for row in steps(alone.folder)]
    assert not any(map(alive, run.pids()))
    state = client.job_state(run.job)
    assert (state.state, state.belongs_to(run.folder)) == ("COMPLETED", True)
    assert (run.folder / "logs" / f"job-{run.job}.log").exists(), "a percent sign is no pattern"
