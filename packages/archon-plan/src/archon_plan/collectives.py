"""How long a collective takes: a latency per step and bytes over bandwidth, inside a node or between nodes.

Ranks are numbered as in ``ParallelDims.dense_grid`` and ``expert_grid``, tensor ranks innermost, and fill one node
after another. A ring between nodes crosses the network with as many links as it has ranks in each node, as NCCL's does.
"""

from __future__ import annotations

from dataclasses import dataclass

from archon_core.layout.dims import ParallelDims
from archon_plan.devices import Device
from archon_plan.results import Axis, Transfer


@dataclass(frozen=True)
class Group:
    """Where the ranks of a collective are.

    Attributes:
        size: number of ranks.
        in_node: how many of them share a node.
    """

    size: int
    in_node: int

    @property
    def nodes(self) -> int:
        """Nodes that the group spans."""
        return -(-self.size // self.in_node)


def group_of(axis: Axis, size: int, dims: ParallelDims, devices_per_node: int) -> Group:
    """The ranks of an axis.

    Args:
        axis: of the collective.
        size: ranks in it. Experts exchange tokens over ``ep`` x ``etp`` ranks, which are neighbours.
        dims: the sizes of all axes.
        devices_per_node: ranks of a node.
    """
    if axis in ("tp", "etp"):
        stride = 1
    elif axis in ("ep", "stage"):
        stride = dims.etp if axis == "ep" and size == dims.ep else 1
    elif axis == "cp_keys":
        stride = dims.tp * dims.cp // size
    elif axis in ("cp", "cp_heads", "fsdp"):
        # dp_shard x cp: neighbours are tensor ranks apart, whether both sizes are above 1 or one of them.
        stride = dims.tp
    elif axis == "edp":
        stride = dims.ep * dims.etp
    elif axis == "dp_replicate":
        stride = dims.sharding_size
    else:
        stride = dims.stage_size
    return Group(size, _in_node(size, stride, devices_per_node, dims.world_size))


def _in_node(size: int, stride: int, per_node: int, world: int) -> int:
    """Most ranks of the group in one node, of groups that begin at any multiple of their extent."""
    if world <= per_node or per_node % (size * stride) == 0:
        return size
    return max(1, min(size, per_node // stride))


def seconds_of(transfer: Transfer, dims: ParallelDims, device: Device) -> float:
    """Seconds of all calls of a transfer together."""
    if transfer.size <= 1 or not transfer.calls:
        return 0.0
    group = group_of(transfer.axis, transfer.size, dims, device.devices_per_node)
    efficiency = device.efficiency
    inside = device.node_bandwidth * efficiency.node
    if group.nodes == 1:
        return transfer.calls * _steps(transfer, group.size) * device.node_latency + transfer.bytes / inside
    between = device.network_bandwidth * efficiency.network
    if transfer.collective in ("all_to_all", "send"):
        # Every rank sends its own part to each of the others, or one message to its neighbour.
        away = (group.size - group.in_node) / (group.size - 1) if transfer.collective == "all_to_all" else 1.0
        flow = transfer.bytes * away / between + transfer.bytes * (1 - away) / inside
        return transfer.calls * device.network_latency + flow
    rounds = 2 if transfer.collective == "all_reduce" else 1
    crossings = rounds * (group.nodes - 1)
    hops = rounds * (group.size - 1) - crossings
    latency = crossings * device.network_latency + hops * device.node_latency
    return transfer.calls * latency + transfer.bytes / min(inside, between * group.in_node)


def _steps(transfer: Transfer, size: int) -> int:
    match transfer.collective:
        case "all_reduce":
            return 2 * (size - 1)
        case "all_gather" | "reduce_scatter" | "broadcast":
            return size - 1
    return 1
