"""Runs ``archon train`` on a real SLURM of three nodes, which ``hatch run test-slurm`` starts."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import cluster_runs
from cluster_runs import Runs, runs_in
from slurm_cluster import FOLDER, SlurmCluster

OPTIONS = {"scheduler": {"type": "slurm"}, "slurm": {"poll_seconds": 0.5, "node_timeout": 6}}

TWO = "actor.backend=archon:d2"
"""One rank on each of two machines."""


@dataclass
class Started(cluster_runs.Started):
    """A run of ``archon train`` in progress."""

    @property
    def job(self) -> str:
        """Id of the trainer's job."""
        (job,) = {path.name.removeprefix("job-") for path in (self.folder / "logs").iterdir() if path.is_dir()}
        return job

    def node(self, number: int, attempt: int = 0) -> dict[str, Any]:
        """What a machine reports."""
        path = self.folder / "logs" / f"job-{self.job}" / f"attempt-{attempt}" / f"node-{number}.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def pids(self, attempt: int = 0) -> list[int]:
        """Processes of the ranks of an attempt."""
        return [rank["pid"] for number in (0, 1) for rank in self.node(number, attempt)["ranks"]]


@pytest.fixture(scope="session")
def cluster() -> SlurmCluster:
    """The cluster of ``hatch run test-slurm``."""
    folder = os.environ.get(FOLDER)
    if not folder:
        pytest.skip("no SLURM of three nodes: `hatch run test-slurm` installs and starts one (Debian, as root)")
    return SlurmCluster(Path(folder))


@pytest.fixture(scope="session")
def all_runs(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    runs = runs_in(tmp_path_factory.mktemp("shared"), OPTIONS, Started)
    yield runs
    runs.kill()


@pytest.fixture
def runs(cluster: SlurmCluster, all_runs: Runs) -> Iterator[Runs]:
    """Starts runs; afterwards no job is left."""
    yield all_runs
    all_runs.kill()
    subprocess.run(["scancel", "--user=root"], check=False)
