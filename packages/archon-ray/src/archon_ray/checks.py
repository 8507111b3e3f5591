"""Checks a run before its processes are placed. Imports neither Ray nor torch."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from importlib.util import find_spec
from typing import Any

from archon_core.contracts.launching import LauncherCheck, ProcessPlan
from archon_core.ranks.environment import rank_environment
from archon_core.serving.cluster_plan import cluster_problems
from archon_ray.options import CLIENT


def check_run(config: Any, *, plan: ProcessPlan, explicit: Collection[str]) -> LauncherCheck:
    """What the launcher says about a run.

    Args:
        config: the run's configuration.
        plan: its processes.
        explicit: dotted names of the options that the user wrote.
    """
    if rank_environment() is not None:
        return LauncherCheck()  # a rank, which the launcher has started
    return LauncherCheck(tuple(_problems(config, plan)), tuple(_unable(config)))


def _unable(config: Any) -> Iterator[str]:
    if find_spec("ray") is None:
        yield "scheduler.type: found ray, and the package ray is not installed; pip install 'ray>=2.40'"
    address = os.environ.get("RAY_ADDRESS", "")
    if config.ray.address is None and address.startswith(CLIENT):
        yield (
            f"RAY_ADDRESS: found {address}, an address of Ray Client; allowed is HOST:PORT of the cluster's head; run "
            "archon train on a machine of the cluster, with `ray job submit`"
        )


def _problems(config: Any, plan: ProcessPlan) -> Iterator[str]:
    yield from cluster_problems(config, plan, scheduler="ray")
    used = max((node for part in plan for node in part.nodes), default=0) + 1
    if config.ray.address == "local" and used > 1:
        yield (
            f"ray.address: found local, which starts Ray on this machine alone; the plan needs {used} machines; set it "
            "to the address of a running cluster, or lower cluster.n_nodes"
        )
