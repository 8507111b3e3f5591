"""What a launcher on a cluster can start of a plan of processes: all ranks in one job, and the rollout's servers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from archon_core.contracts.launching import ProcessPlan
from archon_core.contracts.scheduling import SchedulingSpec
from archon_core.errors import ArchonError
from archon_core.serving.discovery import Discovery


def cluster_problems(config: Any, plan: ProcessPlan, *, scheduler: str) -> Iterator[str]:
    """Messages about parts of the plan that the launcher ``scheduler`` does not start."""
    if any(part.kind == "server" and part.roles == ("rollout",) for part in plan):
        try:
            Discovery.of(config).check_announcing()
        except ArchonError as error:
            yield str(error)
    for part in plan:
        if part.kind == "server" and part.roles != ("rollout",):
            section = part.roles[0]
            yield (
                f"{section}.backend: found servers to start ({part.name}); scheduler.type={scheduler} starts those of "
                f"the rollout only; start them yourself, and set {section}.addresses"
            )
        elif part.kind == "server" and len(part.nodes) > 1:
            yield (
                f"rollout.backend: found {part.layout}, whose servers need {len(part.nodes)} machines each; allowed "
                f"with scheduler.type={scheduler} are servers of one machine; lower t or p, and raise d"
            )
        elif part.kind == "ranks" and part.scheduling not in (SchedulingSpec(), plan.parts[0].scheduling):
            yield (
                f"{part.roles[0]}.scheduling_spec: found other values than in actor.scheduling_spec; "
                f"scheduler.type={scheduler} starts all ranks of the trainer in one job, which gets the actor's; write "
                "the same values, or leave it out"
            )
