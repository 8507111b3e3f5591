"""Processor cores of a machine: threads of its ranks where there are enough, else ranks that share cores.

The figures of a CPU are those of one thread that has a core to itself. With c cores for n ranks, the launcher gives
each rank c // n threads, and at least one. A rank computes as many times faster as it has threads, and never has more,
also while other ranks wait. With more ranks than cores, each of them takes n / c times as long while all compute; while
a pipeline rank waits, its ranks leave their cores to the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from archon_core.contracts.pipeline import SharedCores
from archon_core.layout.dims import ParallelDims
from archon_plan.devices import Device


def with_threads(device: Device, world_size: int) -> Device:
    """The device of a rank with its launcher's number of threads, and ``cores`` as ranks that can compute at once.

    Products and memory are as many times faster as a rank has threads; launches and links are not. Applied again, it
    changes nothing.

    Args:
        device: with the figures of one thread.
        world_size: number of ranks, which fill one machine after another. All count as those of a full machine.
    """
    threads = device.cores // min(world_size, device.devices_per_node)
    if threads <= 1:
        return device
    return replace(
        device,
        peak_bf16=threads * device.peak_bf16,
        peak_fp32=threads * device.peak_fp32,
        memory_bandwidth=threads * device.memory_bandwidth,
        cores=device.cores / threads,
    )


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
    """How the ranks of a layout share the cores of their machines.

    Ranks fill one machine after another, and the ranks of a pipeline rank are neighbours. They count for the machine of
    the first of them, also where they span two (6 ranks on machines of 4).
    """
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
