"""Checks a run before its jobs are submitted. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from archon_core.contracts.launching import LauncherCheck, ProcessPlan
from archon_core.contracts.scheduling import SchedulingSpec
from archon_core.errors import ArchonError
from archon_core.ranks.environment import rank_environment
from archon_core.serving.discovery import Discovery
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
    return LauncherCheck(tuple(_problems(config, plan)))


def _problems(config: Any, plan: ProcessPlan) -> Iterator[str]:
    parts = list(plan)
    try:
        check_template(config.slurm)
    except ArchonError as error:
        yield str(error)
    if any(part.kind == "server" and part.roles == ("rollout",) for part in parts):
        try:
            Discovery.of(config).check_announcing()
        except ArchonError as error:
            yield str(error)
    for part in parts:
        if part.kind == "server" and part.roles != ("rollout",):
            section = part.roles[0]
            yield (
                f"{section}.backend: found servers to start ({part.name}); scheduler.type=slurm starts those of the "
                f"rollout only; start them yourself, and set {section}.addresses"
            )
        elif part.kind == "server" and len(part.nodes) > 1:
            yield (
                f"rollout.backend: found {part.layout}, whose servers need {len(part.nodes)} machines each; allowed "
                "with scheduler.type=slurm are servers of one machine; lower t or p, and raise d"
            )
        elif part.kind == "ranks" and part.scheduling not in (SchedulingSpec(), parts[0].scheduling):
            yield (
                f"{part.roles[0]}.scheduling_spec: found other values than in actor.scheduling_spec; "
                "scheduler.type=slurm runs all ranks of the trainer in one job, which gets the actor's; write the same "
                "values, or leave it out"
            )
