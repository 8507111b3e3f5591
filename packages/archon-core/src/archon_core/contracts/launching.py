"""The plan of a run's processes, and the launchers that start, watch and end them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from archon_core.contracts.scheduling import SchedulingSpec
from archon_core.contracts.spec import Spec

if TYPE_CHECKING:
    from pathlib import Path

    from archon_core.contracts.decisions import Decision
    from archon_core.layout import Layout
    from archon_core.ranks.first_failure import RankExit


@dataclass(frozen=True)
class LauncherSpec(Spec):
    """A launcher of a run's processes (``scheduler.type``). ``target`` names a ``LauncherFactory``.

    Attributes:
        scheduling: fields of ``SchedulingSpec`` that it uses.
        starts_servers: whether it starts the inference servers of the run, as parts of the plan. Otherwise the
            trainer's first rank starts them on its own machine.
        check: target of ``check(config, *, plan, explicit) -> LauncherCheck``, which examines a run's whole
            configuration. It must not import torch: dry runs call it. Empty for no checks.
    """

    kind: ClassVar[str] = "launcher"
    hook: ClassVar[str] = "archon_launchers"

    scheduling: tuple[str, ...] = ()
    starts_servers: bool = False
    check: str = ""


@dataclass(frozen=True)
class LauncherCheck:
    """What a launcher says about a run before it starts.

    Attributes:
        problems: errors in the configuration.
        unable: reasons why this machine cannot launch the run, such as a missing program.
        decisions: options that the launcher sets or does not use.
    """

    problems: tuple[str, ...] = ()
    unable: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()


@dataclass(frozen=True)
class Process:
    """One process, or the devices that one inference server has on a machine.

    Attributes:
        rank: number within its part, from 0.
        node: number of the machine, from 0.
        devices: ids of its accelerators on that machine; empty on CPUs.
    """

    rank: int
    node: int
    devices: tuple[int, ...] = ()


@dataclass(frozen=True)
class Part:
    """Processes that start and end together: the actor's ranks, a role's own ranks, or one inference server.

    Attributes:
        name: ``trainer``, the role, or ``server 0``, ``server 1``, ... and ``teacher server 0``, ...
        roles: the engines that it runs.
        layout: of the trainer's actor, of the role, or of all servers together.
        processes: in the order of their ranks.
        kind: ``ranks`` of a training engine, or a ``server``.
        together: number of consecutive processes that must share a machine: the tensor-parallel ranks.
        scheduling: what every process gets.
    """

    name: str
    roles: tuple[str, ...]
    layout: Layout
    processes: tuple[Process, ...]
    kind: Literal["ranks", "server"] = "ranks"
    together: int = 1
    scheduling: SchedulingSpec = field(default_factory=SchedulingSpec)

    @property
    def nodes(self) -> tuple[int, ...]:
        """The machines that it uses, in order."""
        return tuple(dict.fromkeys(process.node for process in self.processes))

    @property
    def ranks_by_node(self) -> tuple[tuple[int, ...], ...]:
        """The ranks on each of its machines, in order."""
        return tuple(tuple(p.rank for p in self.processes if p.node == node) for node in self.nodes)

    @property
    def wish(self) -> str:
        """Where its processes should be, in words."""
        if self.kind == "server":
            return "spread over machines"
        groups = f"t{self.together} on one machine" if self.together > 1 else "anywhere"
        return f"{groups}; p may cross" if self.layout.dims["p"] > 1 else groups


@dataclass(frozen=True)
class Service:
    """What a run needs beside its parts: a process that the trainer's first rank starts, or a place.

    Attributes:
        name: ``collector``, ``registry``, ``rendezvous store`` or ``weight store``.
        where: its machine, folder or address.
        process: whether it is a separate process.
    """

    name: str
    where: str
    process: bool = False


@dataclass(frozen=True)
class ProcessPlan:
    """All processes of a run.

    Attributes:
        parts: the trainer first, then other roles, then servers.
        n_nodes: ``cluster.n_nodes``.
        devices_per_node: ``cluster.n_gpus_per_node``; 0 on CPUs.
        services: what the parts need beside each other.
    """

    parts: tuple[Part, ...] = ()
    n_nodes: int = 1
    devices_per_node: int = 0
    services: tuple[Service, ...] = ()

    def __iter__(self) -> Iterator[Part]:
        return iter(self.parts)

    def first_rank(self, part: Part) -> int | None:
        """The rank of a part's first process among all ranks of the trainer; ``None`` for a server."""
        if part.kind == "server":
            return None
        before = self.parts[: self.parts.index(part)]
        return sum(len(other.processes) for other in before if other.kind == "ranks")

    @property
    def trainer(self) -> Part:
        """All ranks of training engines as one part, numbered as the launcher starts them: the actor's, then those of
        each separated role. Raises ValueError if the plan has none."""
        parts = [part for part in self.parts if part.kind == "ranks"]
        if not parts:
            raise ValueError("found a plan without ranks")
        ranks = tuple(process for part in parts for process in part.processes)
        return replace(
            parts[0],
            roles=tuple(role for part in parts for role in part.roles),
            processes=tuple(replace(process, rank=rank) for rank, process in enumerate(ranks)),
        )


class StopRequest(Protocol):
    """The user's request to stop, which a launcher polls."""

    @property
    def number(self) -> int | None:
        """Number of the first signal, ``None`` before it. The launcher forwards it: ranks stop after their step."""

    @property
    def insisted(self) -> bool:
        """Whether a second signal came. The launcher ends everything at once."""


@dataclass(frozen=True)
class Launch:
    """A run to launch.

    Attributes:
        config: its configuration, an ``ExperimentConfig``.
        plan: its processes.
        source: the YAML file.
        overrides: of the file, in the order in which the user wrote them.
        folder: the run folder, which exists.
        stop: the user's request to stop.
        note: prints a line for the user.
    """

    config: Any
    plan: ProcessPlan
    source: Path
    overrides: Sequence[str]
    folder: Path
    stop: StopRequest
    note: Callable[[str], None]


class Launcher(Protocol):
    """Starts the processes of one run, watches and ends them."""

    def run(self, *, resume: bool) -> Sequence[RankExit]:
        """Start the trainer's ranks, wait until they have ended, and leave none of them behind.

        Called again, it restarts all ranks.

        Args:
            resume: whether the ranks continue from the run's last checkpoint.

        Returns:
            The ranks that ended by themselves, or were lost.

        Raises:
            ArchonError: the processes cannot be started.
        """

    def close(self) -> None:
        """End whatever else the launcher started, such as servers. Idempotent."""


class LauncherFactory(Protocol):
    """``target`` of a ``LauncherSpec``. Starts nothing yet."""

    def __call__(self, launch: Launch) -> Launcher: ...
