"""Ranks that share processor cores, where a machine has more ranks than cores.

All times of a plan are those of a rank on a core that it shares with no one. While all ranks of a machine compute, each
of them takes n / c times as long on c cores. While a pipeline rank waits, its ranks leave their cores to the others.
"""

from __future__ import annotations

from dataclasses import dataclass

from archon_core.contracts.pipeline import SharedCores
from archon_core.layout.dims import ParallelDims
from archon_plan.devices import Device


@dataclass(frozen=True)
class Sharing:
    """How the ranks of a layout share cores.

    Attributes:
        all_ranks: how many times longer a rank takes while all ranks compute; 1 if each has a core.
        one_stage: likewise, while only the ranks of one pipeline rank compute.
        cores: for the replay of a pipeline; ``None`` if each rank has a core.
    """

    all_ranks: float = 1.0
    one_stage: float = 1.0
    cores: SharedCores | None = None


def sharing_of(dims: ParallelDims, device: Device) -> Sharing:
    """How the ranks of a layout share the cores of their machines. Ranks fill one machine after another, and those of
    a pipeline rank are neighbours."""
    together = min(dims.world_size, device.devices_per_node)
    if not device.cores or together <= device.cores:
        return Sharing()
    of_stage = min(dims.stage_size, together)
    machines = tuple(rank * dims.stage_size // device.devices_per_node for rank in range(dims.pp))
    return Sharing(
        together / device.cores,
        max(1.0, of_stage / device.cores),
        SharedCores(machines, device.cores / of_stage),
    )
