"""A machine of the trainer's job dies, or SLURM loses sight of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cluster_runs import Runs, alive, until
from slurm_cluster import NODES, SlurmCluster

from .conftest import TWO, Started


@pytest.fixture
def healed(cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    """The cluster; its dead nodes are started again afterwards."""
    yield cluster
    for name in NODES:
        if not cluster.processes_of(name):
            cluster.start_node(name)
    cluster.wait_for_idle(NODES)


def parent(pid: int) -> int:
    """The parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])


def kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def agent(run: Started, node: int) -> int:
    """The process that started the ranks of a machine."""
    return parent(run.node(node)["ranks"][0]["pid"])


def test_a_run_goes_on_elsewhere_when_a_machine_dies(runs: Runs, healed: SlurmCluster) -> None:
    run = runs.start("machine-dies", "reward=wait", "trainer.max_steps=25", TWO)
    run.until_step(5)
    host, ranks = run.node(1)["host"], [rank["pid"] for rank in run.node(1)["ranks"]]
    kill([*healed.processes_of(host), agent(run, 1), *ranks])
    assert run.wait() == 0, run.text
    assert f"{host} lost; job" in run.text
    assert [row["step"] for row in run.metrics] == [*range(1, 26)]
    assert host not in (run.node(0, 1)["host"], run.node(1, 1)["host"]), "the dead machine is avoided"
    assert not any(map(alive, [*run.pids(0), *run.pids(1)]))


def test_no_rank_is_left_on_a_machine_that_slurm_has_lost(runs: Runs, healed: SlurmCluster) -> None:
    run = runs.start("daemon-dies", "reward=wait", "trainer.max_steps=3000", TWO)
    run.until_step(5)
    host, orphan = run.node(1)["host"], agent(run, 1)
    kill([pid for pid in healed.processes_of(host) if pid == healed.daemon(host)])
    run.until(lambda: "was started again" in run.text, "requeueing by SLURM")
    until(lambda: not any(map(alive, [orphan, *run.pids(0)])), "an orphan is left")
    run.until(
        lambda: (run.folder / "logs" / f"job-{run.job}" / "attempt-1" / "rank-0.log").exists(), "a second attempt"
    )
    last = len(run.metrics)
    run.until_step(last + 5)
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130
    assert [row["step"] for row in run.metrics] == [*range(1, len(run.metrics) + 1)]
