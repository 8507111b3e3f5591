"""Time of a publication of weights from the trainer to its servers, by transport (docs/weights.md).

The first rank gathers whole tensors bucket by bucket and sends one bucket while it gathers the next, so a publication
takes as long as its slowest part. The commit, checksums and the canary are left out: they take milliseconds each.
"""

from __future__ import annotations

from typing import Literal

from archon_plan.devices import Device
from archon_plan.publication import publication_bytes
from archon_plan.setting import Setting

Transport = Literal["shm", "ipc", "disk", "gloo", "nccl"]
"""``rollout.weight_transport``, with ``distributed`` divided by ``rollout.weight_group``."""


def publication_parts(setting: Setting, device: Device, *, transport: Transport, servers: int) -> dict[str, float]:
    """The parts of a publication, which run beside each other, in seconds.

    Args:
        setting: of the trainer.
        device: of trainer and servers.
        transport: of the weights.
        servers: number of servers.
    """
    moved = publication_bytes(setting, groups=servers)
    share = device.efficiency
    network = device.network_bandwidth * share.network
    within = setting.dims.world_size <= device.devices_per_node
    parts = {"gather": moved.gathered / (device.node_bandwidth * share.node if within else network)}
    host = moved.whole / device.host_bandwidth
    if transport == "ipc":
        parts["copy on the device"] = moved.whole / (device.memory_bandwidth * share.memory)
    elif transport == "shm":
        parts |= {"copy to the host": host, "copy to the servers": host}
    elif transport == "nccl":
        parts["broadcast"] = moved.whole / network  # every byte leaves the first rank once
    elif transport == "gloo":
        parts |= {"copy to the host": host, "send": moved.sent / network, "copy to the servers": host}
    else:
        parts |= {"write": moved.whole / device.disk_bandwidth, "read": moved.whole / device.disk_bandwidth}
    return parts


def publication_seconds(setting: Setting, device: Device, *, transport: Transport, servers: int) -> float:
    """The longest part; of a file, which servers read when it is complete, writing and reading in turn."""
    parts = publication_parts(setting, device, transport=transport, servers=servers)
    read = parts.pop("read", 0.0)
    return max(parts.values()) + read
