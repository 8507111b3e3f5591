"""Checks a run before its jobs are submitted. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from archon_core.contracts.launching import LauncherCheck, ProcessPlan
from archon_core.errors import ArchonError
from archon_core.ranks.environment import rank_environment
from archon_core.serving.cluster_plan import cluster_problems
from archon_slurm.client import SlurmError, check_programs
from archon_slurm.script import check_template


def check_run(config: Any, *, plan: ProcessPlan, explicit: Collection[str]) -> LauncherCheck:
    """What the launcher says about a run.

    Args:
        config: the run's configuration.
        plan: its processes.
        explicit: dotted names of the options that the user wrote.
    """
    if rank_environment() is not None:
        return LauncherCheck()  # a rank, whose jobs are submitted
    return LauncherCheck(tuple(_problems(config, plan)), tuple(_unable()))


def _unable() -> Iterator[str]:
    try:
        check_programs()
    except SlurmError as error:
        yield str(error)


def _problems(config: Any, plan: ProcessPlan) -> Iterator[str]:
    try:
        check_template(config.slurm)
    except ArchonError as error:
        yield str(error)
    yield from cluster_problems(config, plan, scheduler="slurm")
