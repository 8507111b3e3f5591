"""The layouts of an experiment's engines, their inheritance, and the check that they fit the cluster together.

Actor, critic, reference and teacher are colocated, as in AReaL by default: an engine with the actor's world size runs
in the actor's processes and needs no additional ranks, unless its ``scheduling_strategy`` says otherwise. An engine
with another world size, and a rollout engine that does not run on the trainer's ranks, needs separate processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from archon_core.contracts.engine_config import ROLES
from archon_core.contracts.scheduling import SchedulingStrategy
from archon_core.errors import ConfigError
from archon_core.layout.backends import BUILTIN_BACKENDS, Backend, Kind
from archon_core.layout.diagnostics import Fault, count, layout_error, listed
from archon_core.layout.grammar import parse_layout
from archon_core.layout.layout import Layout
from archon_core.ranks.role_ranks import ACTOR, RoleRanks
from archon_train.teacher_servers import TEACHER_SERVERS, teacher_servers, trains_teacher

if TYPE_CHECKING:
    from archon_train.experiment import ExperimentConfig

ENGINE_KINDS: Mapping[str, Kind] = {
    "rollout": "inference",
    **dict.fromkeys(ROLES, "train"),
    TEACHER_SERVERS: "inference",
}
"""Role -> kind of engine, in reporting order."""


NO_STRATEGIES: Mapping[str, SchedulingStrategy] = MappingProxyType({})


def engine_backends(config: ExperimentConfig) -> dict[str, str | None]:
    """The ``backend`` option of every engine in a configuration, by role."""
    on_ranks = [role for role in ROLES if role != "teacher" or trains_teacher(config)]
    engines = {role: getattr(config, role) for role in ("rollout", *on_ranks)}
    engines[TEACHER_SERVERS] = teacher_servers(config)
    return {role: engine.backend for role, engine in engines.items() if engine is not None}


def engine_layouts(
    options: Mapping[str, str | None], *, backends: Mapping[str, Backend] = BUILTIN_BACKENDS
) -> dict[str, Layout]:
    """Parse the ``backend`` options of an experiment.

    Args:
        options: role -> layout, for the engines of the experiment. Critic, ref and teacher inherit the actor's layout
            if theirs is empty or ``None``. A teacher on servers has the role ``teacher.rollout``.
        backends: engines by name.

    Raises:
        ConfigError: the actor, or a given rollout, has no backend; or a role is unknown.
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
        inherits = not options[role] and role != "actor" and ENGINE_KINDS[role] == "train"
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
    """The ranks of one engine.

    Attributes:
        role: ``actor``, ``rollout``, ...
        layout: its layout.
        ranks: number of ranks that it adds to the total.
        hosted_by: the role on whose ranks it runs, if it adds none.
    """

    role: str
    layout: Layout
    ranks: int
    hosted_by: str | None = None

    def __str__(self) -> str:
        if self.hosted_by:
            return f"{self.role} {self.layout}: 0, on the ranks of {self.hosted_by}"
        return f"{self.role} {self.layout}: {self.ranks}"


def cluster_shares(
    layouts: Mapping[str, Layout], strategies: Mapping[str, SchedulingStrategy] = NO_STRATEGIES
) -> tuple[EngineShare, ...]:
    """The ranks of each engine, by the colocation rules in this module's docstring.

    Args:
        layouts: role -> layout.
        strategies: role -> its ``scheduling_strategy``, where there is one.
    """
    shares = []
    for role, layout in layouts.items():
        host = ACTOR if layout.on_trainer_ranks else _host(role, layouts, strategies)
        hosted = host != role
        shares.append(EngineShare(role, layout, 0 if hosted else layout.world_size, host if hosted else None))
    return tuple(shares)


def _host(role: str, layouts: Mapping[str, Layout], strategies: Mapping[str, SchedulingStrategy]) -> str:
    """The role on whose ranks ``role`` runs, which may be itself."""
    seen: list[str] = []
    while role in ROLES and role != ACTOR and role not in seen:
        seen.append(role)
        strategy = strategies.get(role, SchedulingStrategy())
        target = strategy.target if strategy.type == "colocation" else ACTOR
        other = layouts.get(target or "") if target in ROLES else None
        if strategy.type == "separation" or other is None or other.world_size != layouts[role].world_size:
            break
        role = target or role
    return role


def role_ranks(shares: Sequence[EngineShare]) -> tuple[RoleRanks, ...]:
    """The trainer's ranks by role, the actor's first."""
    found: list[RoleRanks] = []
    for share in sorted(shares, key=lambda share: share.role != ACTOR):
        if share.hosted_by or share.layout.kind != "train":
            continue
        hosted = (other.role for other in shares if other.hosted_by == share.role and other.layout.kind == "train")
        first = found[-1].ranks.stop if found else 0
        found.append(RoleRanks(share.role, (share.role, *hosted), first, share.ranks))
    return tuple(found)


def check_cluster(
    layouts: Mapping[str, Layout],
    strategies: Mapping[str, SchedulingStrategy] = NO_STRATEGIES,
    *,
    n_nodes: int,
    n_gpus_per_node: int,
) -> tuple[EngineShare, ...]:
    """Check that the engines fit the cluster together; it may have unused ranks.

    Args:
        layouts: role -> layout, from ``engine_layouts``.
        strategies: role -> its ``scheduling_strategy``, where there is one.
        n_nodes: ``cluster.n_nodes``.
        n_gpus_per_node: ``cluster.n_gpus_per_node``; 0 stands for CPUs, which run any number of ranks.

    Returns:
        The ranks of each engine.

    Raises:
        ConfigError: the engines need more ranks than the cluster has. The message shows the sum.
    """
    for option, number, least in (("cluster.n_nodes", n_nodes, 1), ("cluster.n_gpus_per_node", n_gpus_per_node, 0)):
        if number < least:
            raise ConfigError(f"{option}: found {number}; allowed: from {least}; fix: {option}=1 for a single one")
    shares = cluster_shares(layouts, strategies)
    if n_gpus_per_node == 0:
        return shares
    needed, available = sum(share.ranks for share in shares), n_nodes * n_gpus_per_node
    if needed > available:
        table = "\n".join(f"  {share}" for share in shares)
        total = " + ".join(str(share.ranks) for share in shares if share.ranks)
        options = listed([f"{share.role}.backend" for share in shares if share.ranks])
        raise ConfigError(
            f"cluster: found engines that need {count(needed, 'rank')} on {available}\n{table}\n"
            f"  sum: {total} = {needed}; "
            f"cluster.n_nodes {n_nodes} x cluster.n_gpus_per_node {n_gpus_per_node} = {available}\n"
            f"allowed: a sum of at most {available}{_fitting(shares, available)}\n"
            f"fix: cluster.n_nodes={-(-needed // n_gpus_per_node)}, cluster.n_gpus_per_node={-(-needed // n_nodes)} "
            f"if a machine can run that many (a CPU can), or smaller sizes in {options}"
        )
    return shares


def _fitting(shares: Sequence[EngineShare], available: int) -> str:
    """Layouts with fewer replicas or servers (``d``), one at a time, with which the engines fit."""
    needed, found = sum(share.ranks for share in shares), []
    for share in shares:
        d = share.layout.dims["d"] if share.ranks else 0
        fits = (available - needed + share.ranks) // (share.ranks // d) if d else 0
        text = str(share.layout)
        if fits >= 1 and f"d{d}" in text and "(" not in text:
            found.append(f"{share.role}.backend={text.replace(f'd{d}', f'd{fits}', 1)}")
    return f", as with {' or '.join(found)}" if found else ""
