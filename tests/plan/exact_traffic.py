"""Compares planned traffic with what the ranks of a world sent, group by group."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import product

from wire_counter import Sent

from archon_core.layout.dims import ParallelDims
from archon_plan.results import Axis
from archon_plan.setting import Setting
from archon_plan.traffic import transfers

Key = tuple[tuple[int, ...], str]
"""Members of a group, and the collective."""

Traffic = dict[Key, tuple[float, Fraction]]
"""Calls and bytes."""

DENSE: dict[Axis, tuple[str, ...]] = {
    "pp": ("pp",),
    "dp_replicate": ("dp_replicate",),
    "fsdp": ("dp_shard", "cp"),
    "cp": ("cp",),
    "tp": ("tp",),
    "stage": ("dp_replicate", "dp_shard", "cp", "tp"),
}
EXPERTS: dict[Axis, tuple[str, ...]] = {"edp": ("edp",), "ep": ("ep",), "etp": ("etp",)}


def assert_exact(settings: Sequence[Setting], sent: Sequence[Sequence[Sent]]) -> None:
    """Every rank runs the planned collectives in the planned groups; of the ranks of a pipeline rank, the one that
    sends the most sends exactly the planned bytes.

    Args:
        settings: of each rank, all equal.
        sent: what each rank sent.
    """
    [setting] = set(settings)
    dims = setting.dims
    most: dict[tuple[int, tuple[int, ...], str], tuple[Fraction, Fraction]] = {}
    for rank, own in enumerate(sent):
        planned, counted = planned_for(setting, rank), counted_of(own)
        assert {key: calls for key, (calls, _) in planned.items()} == {
            key: calls for key, (calls, _) in counted.items()
        }
        pipeline_rank = dims.dense_grid.coordinates(rank)["pp"]
        for (members, collective), (_, wanted) in planned.items():
            # Groups of one pipeline rank differ in their members, but not in the distance to the first one.
            kind = (pipeline_rank, tuple(member - members[0] for member in members), collective)
            found = counted[members, collective][1]
            assert found <= wanted, f"rank {rank}, {kind}: sent {found}, planned are {wanted}"
            most[kind] = (max(found, most.get(kind, (Fraction(0), wanted))[0]), wanted)
    for kind, (found, wanted) in most.items():
        assert found == wanted, f"{kind}: sent {found}, planned are {wanted}"


def planned_for(setting: Setting, rank: int) -> Traffic:
    """The planned traffic of a rank."""
    pipeline_rank = setting.dims.dense_grid.coordinates(rank)["pp"]
    traffic: Traffic = {}
    for transfer in transfers(setting):
        if transfer.pipeline_rank == pipeline_rank:
            key = (members_of(transfer.axis, transfer.size, rank, setting.dims), transfer.collective)
            calls, n_bytes = traffic.get(key, (0, Fraction(0)))
            traffic[key] = (calls + transfer.calls, n_bytes + Fraction(transfer.bytes))
    return traffic


def counted_of(sent: Sequence[Sent]) -> Traffic:
    """The traffic that a rank counted, without exchanges of Python values."""
    traffic: Traffic = {}
    for one in sent:
        if not one.inside:
            calls, n_bytes = traffic.get((one.members, one.collective), (0, Fraction(0)))
            traffic[one.members, one.collective] = (calls + 1, n_bytes + one.bytes)
    return traffic


def members_of(axis: Axis, size: int, rank: int, dims: ParallelDims) -> tuple[int, ...]:
    """The global ranks of a rank's group along an axis."""
    if axis in ("cp_heads", "cp_keys"):
        context = members_of("cp", dims.cp, rank, dims)
        place, heads = context.index(rank), size if axis == "cp_heads" else dims.cp // size
        first = place // heads * heads
        return context[first : first + heads] if axis == "cp_heads" else context[place % heads :: heads]
    grid, free = (dims.dense_grid, DENSE[axis]) if axis in DENSE else (dims.expert_grid, EXPERTS[axis])
    if axis == "ep" and size != dims.ep:
        free = ("ep", "etp")  # of tokens
    sizes = dict(zip(grid.axes, grid.sizes, strict=True))
    place = grid.coordinates(rank)
    places = product(*(range(sizes[name]) for name in free))
    members = tuple(grid.rank({**place, **dict(zip(free, values, strict=True))}) for values in places)
    assert len(members) == size, f"{axis} of {dims.describe()} has {len(members)} ranks, planned are {size}"
    return members
