"""The layouts of a whole experiment: which engine inherits whose, and whether all of them fit the cluster.

Actor, critic, reference and teacher are colocated, as they are in AReaL by default: engines whose world size is
the actor's live side by side in the actor's processes and need no ranks of their own. An engine of another
world size has processes of its own. Rollout has its own too, unless its engine runs on the trainer's ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archon_core.contracts.engine_config import ROLES
from archon_core.errors import ConfigError
from archon_core.layout.backends import BUILTIN_BACKENDS, Backend, Kind
from archon_core.layout.diagnostics import Fault, count, layout_error, listed
from archon_core.layout.grammar import parse_layout
from archon_core.layout.layout import Layout

if TYPE_CHECKING:
    from archon_train.experiment import ExperimentConfig

ENGINE_KINDS: Mapping[str, Kind] = {"rollout": "inference", **dict.fromkeys(ROLES, "train")}
"""The engines of an experiment, in the order in which they are reported."""


def engine_backends(config: ExperimentConfig) -> dict[str, str | None]:
    """The ``backend`` option of every engine that a configuration has."""
    engines = {role: getattr(config, role) for role in ENGINE_KINDS}
    return {role: engine.backend for role, engine in engines.items() if engine is not None}


def engine_layouts(
    options: Mapping[str, str | None], *, backends: Mapping[str, Backend] = BUILTIN_BACKENDS
) -> dict[str, Layout]:
    """Parse the ``backend`` options of an experiment.

    Args:
        options: role -> layout, for the engines that the experiment has. Critic, ref and teacher inherit the
            actor's layout when theirs is empty or ``None``.
        backends: engines by name.

    Raises:
        ConfigError: the actor, or a rollout that is there, has no backend; or a role is unknown.
        LayoutError: a layout is malformed, or names an engine of the wrong kind.
    """
    unknown = [role for role in options if role not in ENGINE_KINDS]
    if unknown:
        raise ConfigError(
            f"found a backend for {', '.join(unknown)}; allowed: {', '.join(ENGINE_KINDS)}; fix: rename or remove it"
        )
    actor = _parse_role("actor", options.get("actor"), backends)
    layouts = {}
    for role in ENGINE_KINDS:
        if role not in options:
            continue
        inherits = not options[role] and role not in ("actor", "rollout")
        layouts[role] = actor if role == "actor" or inherits else _parse_role(role, options[role], backends)
    return layouts


def _parse_role(role: str, text: str | None, backends: Mapping[str, Backend]) -> Layout:
    option, kind = f"{role}.backend", ENGINE_KINDS[role]
    examples = [backend.example() for backend in backends.values() if backend.kind == kind]
    if not text:
        raise ConfigError(
            f"{option}: found nothing; allowed: <backend>:<sizes>; fix: write {option}={next(iter(examples), '...')}"
        )
    layout = parse_layout(text, backends=backends, option=option)
    if layout.kind != kind:
        names = ", ".join(name for name, backend in backends.items() if backend.kind == kind)
        fault = Fault(
            spans=((0, len(layout.backend)),),
            found=f"{layout.backend}, which is an engine for {_purpose(layout.kind)}",
            allowed=f"engines for {_purpose(kind)}: {names}",
        )
        raise layout_error(text, fault, fix=f"write {option}={next(iter(examples), '...')}", option=option)
    return layout


def _purpose(kind: Kind) -> str:
    return "training" if kind == "train" else "inference"


@dataclass(frozen=True)
class EngineShare:
    """What one engine takes of the cluster.

    Attributes:
        role: ``actor``, ``rollout``, ...
        layout: its layout.
        ranks: ranks that it adds to the sum.
        hosted_by: the role whose ranks it runs on, if it has none of its own.
    """

    role: str
    layout: Layout
    ranks: int
    hosted_by: str | None = None

    def __str__(self) -> str:
        if self.hosted_by:
            return f"{self.role} {self.layout}: 0, on the ranks of {self.hosted_by}"
        return f"{self.role} {self.layout}: {self.ranks}"


def cluster_shares(layouts: Mapping[str, Layout]) -> tuple[EngineShare, ...]:
    """What each engine takes of the cluster, by the rules of colocation in this module's docstring."""
    actor = layouts["actor"]
    shares = []
    for role, layout in layouts.items():
        beside_actor = role in ROLES and role != "actor" and layout.world_size == actor.world_size
        hosted = layout.on_trainer_ranks or beside_actor
        shares.append(EngineShare(role, layout, 0 if hosted else layout.world_size, "actor" if hosted else None))
    return tuple(shares)


def check_cluster(layouts: Mapping[str, Layout], *, n_nodes: int, n_gpus_per_node: int) -> tuple[EngineShare, ...]:
    """Check that the engines fit the cluster together; ranks may be left over.

    Args:
        layouts: role -> layout, as ``engine_layouts`` gives them.
        n_nodes: ``cluster.n_nodes``.
        n_gpus_per_node: ``cluster.n_gpus_per_node``.

    Returns:
        What each engine takes.

    Raises:
        ConfigError: they need more ranks than there are. The message shows the sum.
    """
    for option, number in (("cluster.n_nodes", n_nodes), ("cluster.n_gpus_per_node", n_gpus_per_node)):
        if number < 1:
            raise ConfigError(f"{option}: found {number}; allowed: from 1; fix: {option}=1 for a single one")
    shares = cluster_shares(layouts)
    needed, available = sum(share.ranks for share in shares), n_nodes * n_gpus_per_node
    if needed > available:
        table = "\n".join(f"  {share}" for share in shares)
        total = " + ".join(str(share.ranks) for share in shares if share.ranks)
        options = listed([f"{share.role}.backend" for share in shares if share.ranks])
        raise ConfigError(
            f"cluster: found engines that need {count(needed, 'rank')} on {available}\n{table}\n"
            f"  sum: {total} = {needed}; "
            f"cluster.n_nodes {n_nodes} x cluster.n_gpus_per_node {n_gpus_per_node} = {available}\n"
            f"allowed: a sum of at most {available}\n"
            f"fix: cluster.n_nodes={-(-needed // n_gpus_per_node)}, cluster.n_gpus_per_node={-(-needed // n_nodes)} "
            f"where a machine can run as many (a CPU can), or smaller sizes in {options}"
        )
    return shares
