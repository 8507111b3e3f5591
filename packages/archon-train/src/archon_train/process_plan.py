"""The plan of a run's processes: which machine and devices each of them gets. Pure; imports no torch.

Launchers start, watch and end the processes of the plan. Placement follows two rules:

- The ranks of a tensor-parallel group are on one machine. Pipeline stages and replicas may be on different ones.
- The trainer's ranks fill the machines in order. Each inference server goes to the machine with the most free devices
  and takes all its devices there if the machine has as many.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from archon_core.contracts.launching import Part, Process, ProcessPlan
from archon_core.contracts.scheduling import SchedulingSpec
from archon_core.errors import ConfigError
from archon_core.layout import Layout
from archon_core.layout.diagnostics import count
from archon_train.cluster import EngineShare
from archon_train.teacher_servers import TEACHER_SERVERS

TRAINER = "trainer"

MORE_NODES = 17
"""Numbers of further machines that are tried for the advice what would fit."""

MAX_RANKS = 2**20
"""Ranks that a plan lists. A larger number is a slip, and its list would fill the memory."""


def plan_processes(
    shares: Sequence[EngineShare],
    *,
    n_nodes: int,
    n_gpus_per_node: int,
    scheduling: Mapping[str, SchedulingSpec] | None = None,
) -> ProcessPlan:
    """Place the ranks of all engines on the machines.

    Args:
        shares: the ranks of each engine, which fit the cluster by their number.
        n_nodes: ``cluster.n_nodes``.
        n_gpus_per_node: ``cluster.n_gpus_per_node``; 0 stands for CPUs, which run any number of ranks.
        scheduling: role -> what its processes get.

    Raises:
        ConfigError: a tensor-parallel group does not fit on a machine, or no machine has enough free devices. The
            message says how many machines would do.
    """
    try:
        return _place(shares, n_nodes, n_gpus_per_node, scheduling or {})
    except _NoRoomError as error:
        for more in range(n_nodes + 1, n_nodes + MORE_NODES):
            with contextlib.suppress(_NoRoomError):
                _place(shares, more, n_gpus_per_node, {})
                raise ConfigError(f"{error}\nthese engines fit with cluster.n_nodes={more}") from error
        raise


class _NoRoomError(ConfigError):
    """The devices that are free do not suffice."""


def _place(
    shares: Sequence[EngineShare], n_nodes: int, n_gpus_per_node: int, scheduling: Mapping[str, SchedulingSpec]
) -> ProcessPlan:
    n_ranks = sum(share.ranks for share in shares)
    if n_ranks > MAX_RANKS:
        raise ConfigError(
            f"cluster: found engines that need {n_ranks} ranks together; allowed are up to {MAX_RANKS}; lower the "
            "sizes of the layouts"
        )
    machines = _Machines(min(n_nodes, n_ranks), n_gpus_per_node, n_ranks)
    parts = []

    def gets(share: EngineShare) -> SchedulingSpec:
        return scheduling.get(share.role) or SchedulingSpec()

    for share in sorted(shares, key=lambda share: share.role != "actor"):
        if share.hosted_by or share.layout.kind != "train":
            continue
        name = TRAINER if share.role == "actor" else share.role
        roles = (share.role, *(other.role for other in shares if other.hosted_by == share.role))
        processes = tuple(machines.place_ranks(share))
        parts.append(
            Part(name, roles, share.layout, processes, together=_together(share.layout), scheduling=gets(share))
        )
    for share in shares:
        if share.layout.kind == "inference" and not share.hosted_by:
            for index in range(share.layout.servers):
                name = f"teacher server {index}" if share.role == TEACHER_SERVERS else f"server {index}"
                processes = tuple(machines.place_server(share, name))
                parts.append(Part(name, (share.role,), share.layout, processes, kind="server", scheduling=gets(share)))
    return ProcessPlan(tuple(parts), n_nodes, n_gpus_per_node)


def _together(layout: Layout) -> int:
    """Consecutive ranks that must share a machine: whole tensor-parallel groups, those inside of experts included."""
    return math.lcm(layout.dims["t"], layout.etp or 1)


@dataclass
class _Machines:
    """The free devices of every machine.

    Attributes:
        n_nodes: number of machines.
        size: devices per machine; 0 on CPUs.
        n_ranks: of all engines together, which CPU machines share evenly.
    """

    n_nodes: int
    size: int
    n_ranks: int
    free: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        slots = min(self.size, self.n_ranks) if self.size else self.n_ranks  # a CPU runs any number of ranks
        self.free = [list(range(slots)) for _ in range(self.n_nodes)]

    def place_ranks(self, share: EngineShare) -> Iterator[Process]:
        """Processes of a training engine, one device each."""
        group = self._tensor_group(share)
        n_groups = share.ranks // group
        # On CPUs, where every machine could run all ranks, each one gets the same number of groups.
        limit = self.n_ranks if self.size else -(-n_groups // self.n_nodes) * group
        rank = 0
        placed = [0] * self.n_nodes
        for _ in range(n_groups):
            node = next(
                (n for n in range(self.n_nodes) if len(self.free[n]) >= group and placed[n] + group <= limit), None
            )
            if node is None:
                raise self._no_room(f"{share.role}.backend={share.layout}", share.role, group)
            placed[node] += group
            for device in self._take(node, group):
                yield Process(rank, node, device)
                rank += 1

    def place_server(self, share: EngineShare, name: str) -> Iterator[Process]:
        """One server: one process where a machine has enough devices, else one per tensor-parallel group."""
        group, needed = self._tensor_group(share), share.layout.devices_per_server
        fits = not self.size or needed <= self.size
        chunk = needed if fits else group
        for rank in range(needed // chunk):
            node = max(range(self.n_nodes), key=lambda n: (len(self.free[n]), -n))
            if len(self.free[node]) < chunk:
                raise self._no_room(f"{name} of {share.role}.backend={share.layout}", share.role, chunk)
            devices = tuple(device for one in self._take(node, chunk) for device in one)
            yield Process(rank, node, devices)

    def _tensor_group(self, share: EngineShare) -> int:
        group = _together(share.layout)
        if self.size and group > self.size:
            raise ConfigError(
                f"{share.role}.backend: found {share.layout}, whose tensor-parallel groups need "
                f"{count(group, 'device')} on one machine; allowed is at most cluster.n_gpus_per_node={self.size}; "
                f"lower t, and use p or d across machines"
            )
        return group

    def _take(self, node: int, number: int) -> list[tuple[int, ...]]:
        taken, self.free[node] = self.free[node][:number], self.free[node][number:]
        return [(device,) if self.size else () for device in taken]

    def _no_room(self, what: str, role: str, group: int) -> _NoRoomError:
        free = ", ".join(f"{len(devices)} on machine {node}" for node, devices in enumerate(self.free))
        return _NoRoomError(
            f"cluster: found {what}, which needs {count(group, 'device')} on one machine; free are {free}; allowed is "
            f"a layout whose groups fit; lower t in {role}.backend, choose sizes that divide cluster.n_gpus_per_node="
            f"{self.size}, or raise cluster.n_nodes"
        )
