"""Judges ``scheduling_spec`` and ``scheduling_strategy``: honoured, refused, or unused. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from archon_core.config.rules import written_value
from archon_core.contracts.decisions import Decision
from archon_core.contracts.scheduling import SchedulingSpec, SchedulingStrategy
from archon_core.contracts.train import AlgorithmSpec
from archon_core.layout import Layout
from archon_core.layout.diagnostics import count
from archon_core.ranks.role_ranks import ACTOR
from archon_train.cluster import ENGINE_KINDS, EngineShare

LOCAL = ("env_vars",)
"""Fields of ``SchedulingSpec`` that processes on this machine have."""


def scheduling_specs(config: Any, roles: Collection[str]) -> dict[str, SchedulingSpec]:
    """``scheduling_spec`` of each role that has one."""
    found = {}
    for role in roles:
        spec = getattr(_section(config, role), "scheduling_spec", None)
        if spec is not None:
            found[role] = spec
    return found


def scheduling_strategies(config: Any, roles: Collection[str]) -> dict[str, SchedulingStrategy]:
    """``scheduling_strategy`` of each role that has one."""
    found = {role: getattr(_section(config, role), "scheduling_strategy", None) for role in roles}
    return {role: strategy for role, strategy in found.items() if strategy is not None and strategy.type is not None}


def strategy_problems(config: Any, shares: Sequence[EngineShare], algorithm: AlgorithmSpec | None) -> Iterator[str]:
    """Errors in ``scheduling_strategy``, and engines of other sizes without one.

    Args:
        config: the run's configuration.
        shares: of its engines.
        algorithm: of the run; ``None`` if it is unknown.
    """
    hosts = {share.role: share.hosted_by or share.role for share in shares}
    layouts = {share.role: share.layout for share in shares}
    strategies = scheduling_strategies(config, hosts)
    for role, host in hosts.items():
        strategy, layout = strategies.get(role, SchedulingStrategy()), layouts[role]
        option = f"{role}.scheduling_strategy"
        shared = [other for other, place in hosts.items() if place == host and other != role]
        can = algorithm is None or role in algorithm.separable
        if strategy.type == "colocation" and strategy.target == role:
            own = f", or type=separation to give {role} its own ranks" if role != ACTOR else ""
            yield f"{option}.target: found {role} itself; allowed is another engine; correct target{own}"
        elif strategy.type == "colocation" and strategy.target not in shared:
            reason = _why_apart(role, strategy.target, hosts, layouts, strategies)
            yield f"{option}: found colocation with {strategy.target}; {reason}"
        elif layout.kind != "train" or host == ACTOR:
            continue
        elif strategy.type is None:
            yield _other_size(role, layout, layouts[ACTOR], separable=can)
        elif not can:
            assert algorithm is not None
            yield (
                f"{option}: found {strategy.type}{f' with {strategy.target}' if host != role else ''}; algorithm "
                f"{algorithm.name} runs {role} in the actor's processes; write type=colocation and target={ACTOR}, "
                f"and leave {role}.backend out or choose a layout of {count(layouts[ACTOR].world_size, 'rank')}"
            )


def _other_size(role: str, layout: Layout, actor: Layout, *, separable: bool) -> str:
    """The message about a model that has neither the actor's size nor its own ranks."""
    apart = f"write {role}.scheduling_strategy.type=separation to give it its own ranks, " if separable else ""
    return (
        f"{role}.backend: found {layout}, on {count(layout.world_size, 'rank')}; a model on the actor's ranks "
        f"({actor}) needs {actor.world_size}; {apart}choose a layout of {count(actor.world_size, 'rank')}, or leave "
        f"{role}.backend out to inherit the actor's"
    )


def _why_apart(
    role: str,
    target: str | None,
    hosts: Mapping[str, str],
    layouts: Mapping[str, Layout],
    strategies: Mapping[str, SchedulingStrategy],
) -> str:
    if target not in hosts:
        return f"allowed are the engines of this run: {', '.join(hosts)}; correct target"
    if "rollout" in (role, target):
        return (
            "servers and trainer that take turns on the same devices are not part of this version; set "
            "rollout.backend=local, or type=separation"
        )
    if layouts[role].world_size == layouts[target].world_size:
        other = strategies[target]
        if other.type == "separation":
            return f"{target}.scheduling_strategy.type=separation gives {target} its own ranks; leave one of them out"
        return (
            f"{target}.scheduling_strategy is a colocation with {other.target}, a circle; give one of them "
            "type=separation"
        )
    return (
        f"engines share ranks if they have as many: {role}.backend={layouts[role]} has {layouts[role].world_size}, "
        f"{target}.backend={layouts[target]} has {layouts[target].world_size}; make them equal, or write "
        "type=separation"
    )


def unused_scheduling(
    config: Any, shares: Sequence[EngineShare], honoured: Collection[str], launcher: str, explicit: Collection[str]
) -> Iterator[Decision]:
    """Decisions about options of ``scheduling_spec`` and ``scheduling_strategy`` that have no effect.

    Args:
        config: the run's configuration.
        shares: of its engines.
        honoured: fields that the launcher uses.
        launcher: its name.
        explicit: dotted names of the options that the user wrote.
    """
    hosts = {share.role: share.hosted_by for share in shares}
    for role, spec in scheduling_specs(config, ENGINE_KINDS).items():
        host, option = hosts.get(role), f"{role}.scheduling_spec"
        written = [name for name in vars(spec) if f"{option}.{name}" in explicit]
        if role not in hosts or host is not None:
            if host is not None and spec == scheduling_specs(config, (host,)).get(host):
                continue  # AReaL's files repeat the actor's
            shown = ", ".join(f"{name}={written_value(getattr(spec, name))}" for name in written) or "{}"
            where = f"in the processes of {host}, which get {host}.scheduling_spec" if host else "nowhere in this run"
            yield Decision(option, shown, "no effect", f"{role} runs {where}")
            continue
        for name in written:
            if name not in honoured:
                reason = f"scheduler.type={launcher} does not use it"
                yield Decision(f"{option}.{name}", written_value(getattr(spec, name)), "no effect", reason)
    for role in ENGINE_KINDS:
        strategy = getattr(_section(config, role), "scheduling_strategy", None)
        if role not in hosts and strategy is not None and strategy.type is not None:
            reason = f"{role} runs nowhere in this run"
            yield Decision(f"{role}.scheduling_strategy", f"type={strategy.type}", "no effect", reason)
        elif hosts.get(role) and strategy is not None and strategy.type == "separation":
            reason = f"{role}.backend=local samples on the ranks of {hosts[role]}; servers have processes of their own"
            yield Decision(f"{role}.scheduling_strategy", "type=separation", "no effect", reason)
        elif strategy is not None and strategy.type == "separation" and strategy.target is not None:
            reason = f"only type=colocation has a target; {role} gets its own processes"
            yield Decision(f"{role}.scheduling_strategy.target", strategy.target, "no effect", reason)


def _section(config: Any, role: str) -> Any:
    found = config
    for name in role.split("."):
        found = getattr(found, name, None)
    return found
