"""A critic on its own ranks, in a SLURM job whose run folder has a name that SLURM and the shell read otherwise."""

from __future__ import annotations

from archon_slurm import client
from cluster_runs import CRITIC_APART, PPO, Runs, alive, assert_same_steps

from .conftest import Started


def test_a_separated_critic_trains_with_the_numbers_of_one_process(runs: Runs) -> None:
    alone: Started = runs.start("roles-alone", *PPO, "scheduler.type=local", "actor.backend=archon:d1")
    root = runs.folder / "50% #1 of %u's runs"
    run: Started = runs.start("roles", *PPO, *CRITIC_APART, f"cluster.fileroot={root}")
    run.folder = root / "e" / "roles"
    assert run.wait() == 0, run.text
    assert alone.wait() == 0, alone.text
    assert [[rank["rank"] for rank in run.node(node)["ranks"]] for node in (0, 1)] == [[0, 2], [1]]
    assert_same_steps(run, alone)
    assert not any(map(alive, run.pids()))
    state = client.job_state(run.job)
    assert (state.state, state.belongs_to(run.folder)) == ("COMPLETED", True)
    assert (run.folder / "logs" / f"job-{run.job}.log").exists(), "a percent sign is no pattern"
