"""Where the ranks of a collective are, and how long it takes there."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from archon_core.layout.dims import ParallelDims
from archon_plan.collectives import Group, group_of, seconds_of
from archon_plan.devices import Device, Efficiency
from archon_plan.results import Axis, Transfer

DEVICE = Device("test", 1, 1, 1, 1, 100.0, 1.0, 10.0, 5.0, 1, 8, Efficiency(1, 1, 1, 1, node=0.5, network=1.0))

DENSE: dict[Axis, tuple[str, ...]] = {
    "tp": ("tp",),
    "cp": ("cp",),
    "fsdp": ("dp_shard", "cp"),
    "dp_replicate": ("dp_replicate",),
    "pp": ("pp",),
    "stage": ("dp_replicate", "dp_shard", "cp", "tp"),
}
EXPERT: dict[Axis, tuple[str, ...]] = {"etp": ("etp",), "ep": ("ep", "etp"), "edp": ("edp",)}

LAYOUTS = [
    ParallelDims(pp, replicas, shards, cp, tp, ep, etp)
    for pp, replicas, shards, cp, tp, ep, etp in itertools.product(
        (1, 2), (1, 2), (1, 2, 4), (1, 2), (1, 2, 4), (1, 2, 4), (1, 2)
    )
    if (shards * cp * tp) % (ep * etp) == 0
]


@pytest.mark.parametrize("per_node", [2, 4, 8])
def test_groups_share_nodes_as_the_grids_of_ranks_say(per_node):
    for dims in LAYOUTS:
        for axes, grid in ((DENSE, dims.dense_grid), (EXPERT, dims.expert_grid)):
            for axis, names in axes.items():
                groups = grid.groups(names)
                shared = max(max(Counter(rank // per_node for rank in group).values()) for group in groups)
                assert group_of(axis, len(groups[0]), dims, per_node).in_node == shared, (dims, axis)


def transfer(collective, size: int, axis: Axis = "tp", sent: float = 700.0, calls: float = 1) -> Transfer:
    return Transfer(axis, size, collective, "", calls, sent, overlaps=False)


INSIDE = ParallelDims(tp=8)
ACROSS = ParallelDims(tp=16)


@pytest.mark.parametrize(
    ("collective", "steps"),
    [("all_gather", 7), ("reduce_scatter", 7), ("all_reduce", 14), ("all_to_all", 1), ("send", 1)],
)
def test_inside_a_node_latency_counts_per_step_and_bytes_flow_at_the_share_of_its_links(collective, steps):
    assert seconds_of(transfer(collective, 8), INSIDE, DEVICE) == steps * 1.0 + 700 / 50
    assert seconds_of(transfer(collective, 8, calls=3), INSIDE, DEVICE) == 3 * steps * 1.0 + 700 / 50


def test_a_ring_between_nodes_uses_one_link_of_each_of_its_ranks_in_a_node():
    # 16 ranks on two nodes: 14 steps inside nodes, one between them; eight links of 10 bytes/s beat the node's 50.
    assert seconds_of(transfer("all_gather", 16), ACROSS, DEVICE) == 14 * 1.0 + 5.0 + 700 / 50
    # One rank in each of four nodes: every step crosses the network, over one link.
    replicas = ParallelDims(dp_replicate=4, tp=8)
    assert seconds_of(transfer("all_reduce", 4, "dp_replicate"), replicas, DEVICE) == 6 * 5.0 + 700 / 10


def test_an_all_to_all_sends_to_each_rank_over_the_link_between_them():
    # Eight of the fifteen others are on the other node.
    seconds = seconds_of(transfer("all_to_all", 16, "ep", sent=1500.0), ParallelDims(dp_shard=16, ep=16), DEVICE)
    assert seconds == pytest.approx(5.0 + 800 / 10 + 700 / 50)


def test_a_group_of_one_rank_takes_no_time():
    assert seconds_of(transfer("all_gather", 1), INSIDE, DEVICE) == 0.0


def test_a_world_inside_a_node_has_no_network():
    assert group_of("pp", 2, ParallelDims(pp=2, tp=4), 8) == Group(2, 2)
    assert group_of("pp", 2, ParallelDims(pp=2, tp=8), 8) == Group(2, 1)
