"""How many ranks a run needs, and the commands that start them."""

from __future__ import annotations

import os

import pytest

from archon_core.contracts.scheduling import SchedulingStrategy
from archon_core.errors import ConfigError
from archon_core.ranks.environment import RankEnvironment
from archon_train.cluster import EngineShare, cluster_shares, engine_layouts
from archon_train.experiment import ClusterConfig
from archon_train.launch.world import (
    check_started,
    explain_machines,
    explain_servers_elsewhere,
    n_computing_at_once,
    ranks_needed,
    share_cores,
    threads_per_rank,
    torchrun_command,
)
from archon_train.process_plan import ProcessPlan, plan_processes

ARGUMENTS = ["train", "my run.yaml", "seed=1"]


def shares(actor: str, *separated: str, **others: str) -> tuple[EngineShare, ...]:
    strategies = dict.fromkeys(separated, SchedulingStrategy("separation"))
    return cluster_shares(engine_layouts({"actor": actor, **others}), strategies)


def test_the_actors_ranks_and_those_of_separated_roles_are_started() -> None:
    assert ranks_needed(shares("archon:d2t2")) == 4
    assert ranks_needed(shares("archon:d2t2", critic="", rollout="sglang:d4")) == 4
    assert ranks_needed(shares("archon:d2t2", "critic", critic="archon:t2", ref="")) == 6


def test_as_many_processes_as_the_layout_needs_are_accepted() -> None:
    check_started(RankEnvironment(3, 4, 1, 2), shares("archon:d2t2"), ARGUMENTS)
    check_started(RankEnvironment(5, 6, 1, 2), shares("archon:d2t2", "critic", critic="archon:d2"), ARGUMENTS)


@pytest.mark.parametrize(
    ("world", "local", "layout", "command"),
    [
        (2, 2, "archon:d4", "torchrun --nproc-per-node=4 -m archon_core.cli train 'my run.yaml' seed=1"),
        (
            8,
            4,
            "archon:d2",
            "--nnodes=2 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 --rdzv-id=archon --nproc-per-node=1 ",
        ),
        (4, 2, "archon:d3", "torchrun --nproc-per-node=3 "),
    ],
)
def test_another_number_of_processes_is_refused_with_the_right_command(
    world: int, local: int, layout: str, command: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_started(RankEnvironment(0, world, 0, local), shares(layout), ARGUMENTS)
    text = str(refused.value)
    assert f"found {world} processes" in text
    assert f"actor.backend={layout} needs {layout[-1]}" in text
    assert command in text
    assert f"a layout of {world}" in text


def test_all_layouts_of_separated_roles_are_named() -> None:
    with pytest.raises(ConfigError) as refused:
        check_started(RankEnvironment(0, 2, 0, 2), shares("archon:d2", "ref", ref="archon:d1"), ARGUMENTS)
    text = str(refused.value)
    assert "actor.backend=archon:d2 and ref.backend=archon:d1 need 2 + 1 = 3; start 3 processes:" in text
    assert "a layout of 2" not in text


def test_ranks_of_several_machines_are_explained_and_those_of_one_are_not() -> None:
    cluster = ClusterConfig(n_nodes=2, n_gpus_per_node=4)
    assert explain_machines(shares("archon:d4"), cluster, ARGUMENTS) is None
    text = explain_machines(shares("archon:d4t2"), cluster, ARGUMENTS)
    assert text is not None
    assert "needs 8 on 2 machines" in text
    assert torchrun_command(ARGUMENTS, 8, 2) in text
    assert "cluster.n_gpus_per_node=8" in text


def test_machines_with_different_numbers_of_ranks_have_different_commands() -> None:
    cluster = ClusterConfig(n_nodes=2, n_gpus_per_node=4)
    text = explain_machines(shares("archon:d2t2", "critic", critic="archon:d2"), cluster, ARGUMENTS)
    assert text is not None
    first, second = [line for line in text.splitlines() if line.startswith("  torchrun")]
    assert "--nnodes=2 --node-rank=0 --master-addr=HOST --master-port=29500 --nproc-per-node=4" in first
    assert "--node-rank=1 --master-addr=HOST --master-port=29500 --nproc-per-node=2" in second


def plan_of(n_gpus: int, **backends: str) -> ProcessPlan:
    return plan_processes(shares("archon:d4", **backends), n_nodes=3, n_gpus_per_node=n_gpus)


def test_servers_that_a_local_run_cannot_start_are_named_with_their_machines() -> None:
    text = explain_servers_elsewhere(plan_of(4, rollout="sglang:d3t2"))
    assert text is not None
    assert "the plan has server 0 on machine 1, server 1 on machine 2, server 2 on machine 1" in text
    assert "set rollout.addresses to their HOST:PORT" in text
    assert explain_servers_elsewhere(plan_of(8, rollout="sglang:d2t2")) is None, "they fit beside the trainer"
    assert explain_servers_elsewhere(plan_of(0, rollout="sglang:d3t2")) is None, "a CPU runs any number"


def test_ranks_share_the_cores_and_each_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(8), raising=False)
    assert [threads_per_rank(n) for n in (1, 2, 3, 8, 64)] == [8, 4, 2, 1, 1]


def test_servers_that_sample_ahead_get_cores_of_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = plan_processes(shares("archon:d2", rollout="sglang:d3"), n_nodes=1, n_gpus_per_node=0)
    assert n_computing_at_once(2, processes, 0) == 2
    assert n_computing_at_once(2, processes, 1) == 5
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(10), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "9")  # restored after the test
    monkeypatch.delenv("OMP_NUM_THREADS")
    share_cores(5)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    share_cores(1)
    assert os.environ["OMP_NUM_THREADS"] == "2", "the user's setting wins"
