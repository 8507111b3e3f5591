"""The plan of a run as data: layouts, ranks, and obstacles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from archon_core.config.packages import MissingPackage
from archon_core.contracts.decisions import Decision
from archon_core.layout import Layout
from archon_train.cluster import EngineShare
from archon_train.process_plan import ProcessPlan


@dataclass(frozen=True)
class Obstacle:
    """A reason why a run cannot start.

    Attributes:
        text: message: found / allowed / fix.
        kind: ``config`` if the configuration is wrong on any machine, ``environment`` if this machine or its installed
            packages cannot run it.
    """

    text: str
    kind: Literal["config", "environment"]


@dataclass(frozen=True)
class Need:
    """A missing package, and the options that need it."""

    package: MissingPackage
    purposes: tuple[str, ...]


@dataclass(frozen=True)
class RunPlan:
    """The plan of a run.

    Attributes:
        layouts: role -> layout, of every engine whose layout can be parsed.
        shares: the ranks of each engine.
        processes: the machine and the devices of every process; empty if the engines do not fit the cluster.
        needs: missing packages.
        obstacles: all other reasons why the run cannot start.
        notes: remarks that do not stop the run.
        decisions: unused options of the run, which are recorded with it.
        engine_decisions: device-independent decisions of the engines; in the run, the engines record these and others.
    """

    layouts: Mapping[str, Layout] = field(default_factory=dict)
    shares: tuple[EngineShare, ...] = ()
    processes: ProcessPlan = field(default_factory=ProcessPlan)
    needs: tuple[Need, ...] = ()
    obstacles: tuple[Obstacle, ...] = ()
    notes: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()
    engine_decisions: tuple[Decision, ...] = ()

    @property
    def is_wrong(self) -> bool:
        """Whether the configuration has errors."""
        return any(obstacle.kind == "config" for obstacle in self.obstacles)

    @property
    def can_run(self) -> bool:
        """Whether the run can start on this machine."""
        return not self.needs and not self.obstacles


def install_commands(needs: tuple[Need, ...]) -> Iterator[str]:
    """The commands that install the packages, at most one per kind of command."""
    for prefix in ("pip install", "pip install --upgrade"):
        names = [need.package.name for need in needs if need.package.command == f"{prefix} {need.package.name}"]
        if names:
            yield f"{prefix} {' '.join(sorted(names))}"
