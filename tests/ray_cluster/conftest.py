"""Runs ``archon train`` on a real Ray cluster of two nodes on this machine, started once per session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster_runs import Runs, Started, runs_in, until

OPTIONS = {"scheduler": {"type": "ray"}, "ray": {"placement_timeout": 60, "node_timeout": 20}}

TWO = "actor.backend=archon:d2"
"""One rank on each of two machines."""

NODE = {"num_cpus": 2, "object_store_memory": 80 * 2**20}

SLOW_MACHINE = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_gcs_server_request_timeout_seconds": "120",
    "RAY_gcs_rpc_server_connect_timeout_s": "60",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "OMP_NUM_THREADS": "1",
}
"""Environment of the cluster: on two busy cores, Ray's limits are too short, and its niceness of 15 starves ranks."""


@dataclass
class RayCluster:
    """The cluster.

    Attributes:
        cluster: Ray's.
        workers: its nodes beside the head.
    """

    cluster: Any
    workers: list[Any]

    @property
    def address(self) -> str:
        """Of its head."""
        return str(self.cluster.address)

    def add_worker(self) -> None:
        """Start another node."""
        self.workers.append(self.cluster.add_node(**NODE))

    def kill_worker(self) -> None:
        """Kill the oldest node beside the head, as a machine dies."""
        self.cluster.remove_node(self.workers.pop(0), allow_graceful=False)

    def is_free(self) -> bool:
        """Whether no placement group and no actor holds resources."""
        import ray
        from ray.util import placement_group_table

        states = {group["state"] for group in placement_group_table().values()}
        return states <= {"REMOVED"} and ray.available_resources().get("CPU") == ray.cluster_resources().get("CPU")


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayCluster]:
    """The cluster of the session, to which the test's process is connected."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in SLOW_MACHINE.items():
            patch.setenv(name, value)
        head = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        found = RayCluster(head, [])
        try:
            found.add_worker()
            patch.setenv("RAY_ADDRESS", found.address)
            ray.init(address=found.address, log_to_driver=False, namespace="tests")
            yield found
        finally:
            ray.shutdown()
            head.shutdown()


@pytest.fixture(scope="session")
def all_runs(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    runs = runs_in(tmp_path_factory.mktemp("shared"), OPTIONS)
    yield runs
    runs.kill()


@pytest.fixture
def runs(cluster: RayCluster, all_runs: Runs) -> Iterator[Runs]:
    """Starts runs; afterwards nothing is left of them."""
    yield all_runs
    all_runs.kill()
    until(cluster.is_free, "a placement group is left")


def processes_of(run: Started) -> list[int]:
    """The ranks and servers of a run, wherever they run: their command lines name a file in the run folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if f"{run.folder}/ray/".encode() in command:
                found.append(int(process.name))
    return found
