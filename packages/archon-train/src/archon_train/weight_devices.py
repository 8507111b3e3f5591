"""Devices that the options need with which servers get weights, before a run starts. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archon_core.contracts.weight_transport import WeightTransportSpec
from archon_core.errors import ArchonError
from archon_train.run_plan import Obstacle

if TYPE_CHECKING:
    from archon_core.plugins import Registry

DEVICE_FILES = ("/dev/nvidiactl", "/dev/dxg")
"""One of these exists on a machine with a CUDA device: Linux, and Linux under Windows."""


def device_obstacles(config: Any, transport: str, allowed: Sequence[str], registry: Registry) -> Iterator[Obstacle]:
    """Why the weights of a run on servers cannot travel as configured.

    Args:
        config: the configuration of a run.
        transport: the weight transport in effect.
        allowed: names of the transports that reach the servers.
        registry: the installed specs.
    """
    try:
        spec = registry.get(WeightTransportSpec, transport)
    except ArchonError:
        return  # reported where the option is looked up
    if config.rollout.weight_group == "nccl":
        if spec.name != "distributed":
            yield Obstacle(
                f"rollout.weight_group: found nccl with rollout.weight_transport={spec.name}; only distributed has "
                "groups; set rollout.weight_transport=distributed, or leave weight_group out",
                "config",
            )
        else:
            yield from _without_device(config, "rollout.weight_group: found nccl", "cuda", "gloo")
    if spec.device:
        specs = {one.name: one for one in registry.all(WeightTransportSpec)}
        others = ", ".join(name for name in allowed if name in specs and not specs[name].device)
        yield from _without_device(config, f"rollout.weight_transport: found {transport}", spec.device, others)


def _without_device(config: Any, found: str, device: str, allowed: str) -> Iterator[Obstacle]:
    needs = f"{found}, which moves weights in the memory of a {device} device"
    if config.cluster.n_gpus_per_node == 0:
        yield Obstacle(f"{needs}; cluster.n_gpus_per_node=0 runs on CPUs; allowed there: {allowed}", "config")
    elif config.scheduler.type == "local" and config.cluster.n_nodes == 1 and not has_device():
        yield Obstacle(f"{needs}; this machine has none; allowed here: {allowed}", "environment")


def has_device() -> bool:
    """Whether this machine has a CUDA device that a run may use."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and any(Path(file).exists() for file in DEVICE_FILES)
