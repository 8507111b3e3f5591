"""What a run asks of a Ray cluster: placement groups with one bundle per machine of the plan. Pure.

A bundle is never split over machines, so tensor-parallel ranks stay together. The trainer's bundles are on different
machines; servers are spread over as many as there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from archon_core.contracts.launching import Part
from archon_core.contracts.scheduling import SchedulingSpec
from archon_core.errors import ConfigError
from archon_core.layout.diagnostics import count
from archon_core.ranks.host_list import expand_hosts

PIN = 0.001
"""Share of the resource ``node:ADDRESS``, of which Ray gives each machine 1."""

Strategy = Literal["STRICT_PACK", "STRICT_SPREAD", "SPREAD"]


@dataclass(frozen=True)
class Bundle:
    """What the processes of a part get on one machine.

    Attributes:
        cpus: CPU cores.
        devices: accelerators.
        memory: in GB; 0 for no reservation.
        address: the machine; empty for any.
    """

    cpus: int
    devices: int = 0
    memory: int = 0
    address: str = ""

    def resources(self, accelerator: str | None) -> dict[str, float]:
        """The bundle in Ray's form."""
        found: dict[str, float] = {"CPU": self.cpus}
        if self.devices and accelerator is not None:
            found[accelerator] = self.devices
        if self.memory:
            found["memory"] = self.memory * 2**30
        if self.address:
            found[f"node:{self.address}"] = PIN
        return found


@dataclass(frozen=True)
class Group:
    """A placement group.

    Attributes:
        name: what it holds, in words.
        bundles: one per machine of the trainer, or one per server.
        strategy: Ray's name of how they are placed.
    """

    name: str
    bundles: tuple[Bundle, ...]
    strategy: Strategy

    def __str__(self) -> str:
        first = self.bundles[0]
        each = [count(first.cpus, "CPU"), *([count(first.devices, "device")] if first.devices else [])]
        each += [f"{first.memory} GB of memory"] if first.memory else []
        where = " on different machines" if self.strategy == "STRICT_SPREAD" else ""
        return f"{self.name}: {count(len(self.bundles), 'bundle')} of {', '.join(each)}{where}"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        id: Ray's id, another one after each start.
        host: its name.
        address: its address in the cluster.
        resources: all that it has, also what is in use.
        alive: whether Ray reaches it.
    """

    id: str
    host: str
    address: str
    resources: Mapping[str, float] = field(default_factory=dict)
    alive: bool = True

    def offers(self, bundle: Bundle, accelerator: str | None) -> bool:
        """Whether the bundle fits while nothing else runs there."""
        asked = replace(bundle, address="").resources(accelerator)
        return all(self.resources.get(name, 0.0) >= value for name, value in asked.items())

    def __str__(self) -> str:
        named = {name: value for name, value in self.resources.items() if ":" not in name and "memory" not in name}
        listed = ", ".join(f"{value:g} {name}" for name, value in sorted(named.items())) or "no CPU"
        return f"{self.host} ({self.address}): {listed}"


def trainer_group(part: Part) -> Group:
    """The group of the trainer: a bundle per machine of the plan."""
    here = [[process for process in part.processes if process.node == node] for node in part.nodes]
    bundles = tuple(
        _bundle(part.scheduling, len(processes), sum(len(process.devices) for process in processes))
        for processes in here
    )
    return Group(part.name, bundles, "STRICT_PACK" if len(bundles) == 1 else "STRICT_SPREAD")


def server_group(parts: Sequence[Part]) -> Group:
    """The group of all servers, each of which has one machine."""
    bundles = []
    for part in parts:
        devices = sum(len(process.devices) for process in part.processes)
        bundles.append(_bundle(part.scheduling, max(devices, len(part.processes)), devices))
    return Group("servers", tuple(bundles), "SPREAD")


def _bundle(spec: SchedulingSpec, processes: int, devices: int) -> Bundle:
    return Bundle((spec.cpu or 1) * processes, devices, (spec.mem or 0) * processes)


def pin(group: Group, spec: SchedulingSpec, nodes: Sequence[Node], *, accelerator: str | None, role: str) -> Group:
    """The group on the machines that ``nodelist`` and ``exclude`` allow.

    Args:
        group: a group without addresses.
        spec: of its processes.
        nodes: the cluster's machines.
        accelerator: Ray's name of the devices.
        role: section of the spec, for messages.

    Raises:
        ConfigError: a listed machine is not in the cluster, or too few of the allowed ones are large enough.
    """
    if not (spec.nodelist or spec.exclude):
        return group
    alive = [node for node in nodes if node.alive]
    known = ", ".join(f"{node.host} ({node.address})" for node in alive)
    chosen = alive
    if spec.nodelist:
        names = expand_hosts(spec.nodelist)
        chosen = [node for name in names for node in alive if name in (node.host, node.address)]
        missing = [name for name in names if all(name not in (node.host, node.address) for node in alive)]
        if missing:
            raise ConfigError(
                f"{role}.scheduling_spec.nodelist: found {missing[0]}, which is no machine of the Ray cluster; allowed "
                f"are {known}; correct it"
            )
    excluded = expand_hosts(spec.exclude or "")
    fitting = [
        node
        for node in chosen
        if node.host not in excluded
        and node.address not in excluded
        and all(node.offers(bundle, accelerator) for bundle in group.bundles)
    ]
    needed = len(group.bundles) if group.strategy == "STRICT_SPREAD" else 1
    if len(fitting) < needed:
        named = ", ".join(node.host for node in fitting) or "none"
        raise ConfigError(
            f"{role}.scheduling_spec: found {count(needed, 'machine')} to choose by nodelist and exclude for "
            f"{group}; large enough are {named}; allow more machines, or ask for less on each"
        )
    bundles = [
        replace(bundle, address=fitting[index % len(fitting)].address) for index, bundle in enumerate(group.bundles)
    ]
    return replace(group, bundles=tuple(bundles))


def explain_no_room(
    group: Group, nodes: Sequence[Node], free: Mapping[str, float], seconds: float, accelerator: str | None
) -> str:
    """The message about a group that found no place in time.

    Args:
        group: the group.
        nodes: the cluster's machines.
        free: what is not in use, of all machines together.
        seconds: how long the launcher waited.
        accelerator: Ray's name of the devices.
    """
    alive = [node for node in nodes if node.alive]
    names = sorted(name for name in free if ":" not in name and "memory" not in name)
    unused = ", ".join(f"{free[name]:g} {name}" for name in names) or "nothing"
    listed = "; ".join(map(str, alive)) or "no machine"
    lacks = accelerator is not None and all(accelerator not in node.resources for node in alive)
    on_cpus = "set cluster.n_gpus_per_node=0 to run on CPUs, " if lacks and group.bundles[0].devices else ""
    return (
        f"scheduler.type=ray: found no place within {seconds:g} s for {group}\nthe cluster has {listed}\nfree are "
        f"{unused}, together; {on_cpus}wait for other runs, add machines, ask for less, or raise ray.placement_timeout"
    )
