"""What a run would do with the cluster, and what stops it, as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from archon_core.config.packages import MissingPackage
from archon_core.contracts.decisions import Decision
from archon_core.layout import Layout
from archon_train.cluster import EngineShare


@dataclass(frozen=True)
class Obstacle:
    """One thing that stops a run.

    Attributes:
        text: found / allowed / fix.
        kind: ``config`` when the configuration is wrong wherever it runs, ``environment`` when this machine, or
            what is installed on it, cannot run it.
    """

    text: str
    kind: Literal["config", "environment"]


@dataclass(frozen=True)
class Need:
    """A package that a run needs, and what for."""

    package: MissingPackage
    purposes: tuple[str, ...]


@dataclass(frozen=True)
class RunPlan:
    """What a run would do with the cluster, and what stops it.

    Attributes:
        layouts: role -> layout, of every engine whose layout can be read.
        shares: what each of them takes of the cluster.
        needs: packages to install first.
        obstacles: everything else to mend first.
        notes: what is worth knowing and stops nothing.
        decisions: what the engines will do other than asked, as far as that does not depend on the device; a run
            records these and the others when it makes them.
    """

    layouts: Mapping[str, Layout] = field(default_factory=dict)
    shares: tuple[EngineShare, ...] = ()
    needs: tuple[Need, ...] = ()
    obstacles: tuple[Obstacle, ...] = ()
    notes: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()

    @property
    def is_wrong(self) -> bool:
        """Whether the configuration itself has to change."""
        return any(obstacle.kind == "config" for obstacle in self.obstacles)

    @property
    def can_run(self) -> bool:
        """Whether nothing stops the run here."""
        return not self.needs and not self.obstacles


def install_commands(needs: tuple[Need, ...]) -> Iterator[str]:
    """The commands that bring the packages, as few as possible."""
    for prefix in ("pip install", "pip install --upgrade"):
        names = [need.package.name for need in needs if need.package.command == f"{prefix} {need.package.name}"]
        if names:
            yield f"{prefix} {' '.join(sorted(names))}"
