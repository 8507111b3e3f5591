"""Checks of the options about inference servers, before a run starts. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from archon_core.config.rules import written_value
from archon_core.contracts.decisions import Decision
from archon_core.layout import Layout

SECTION = "cluster.name_resolve"

READ = {"folder": ("nfs_record_root",), "etcd": ("etcd3_addr",), "ray": ("ray_actor_name",)}
"""Registry -> its options."""

BUILT_IN = ("folder", "etcd", "ray", "static", "dns", "memory")
"""Registries whose options are known: another package's may read any."""

ALL = ("type", "nfs_record_root", "etcd3_addr", "ray_actor_name")


def started_layouts(layouts: Mapping[str, Layout], rollout: Any) -> Mapping[str, Layout]:
    """The layouts of the engines that the run starts: without that of servers that run already.

    Args:
        layouts: role -> layout.
        rollout: the section ``rollout``.
    """
    return {
        role: layout
        for role, layout in layouts.items()
        if role != "rollout" or rollout.starts_servers or layout.on_trainer_ranks
    }


def unused_registry(config: Any, explicit: Collection[str]) -> Iterator[Decision]:
    """Decisions about the registry of servers in a run that has none."""
    return _without_effect(config, explicit, ALL, "inference servers are listed there; this run has none")


def unused_registry_options(config: Any, registry: str, explicit: Collection[str]) -> Iterator[Decision]:
    """Decisions about options of other registries than the run's.

    Args:
        config: the run's configuration.
        registry: name of its registry.
        explicit: dotted names of the options that the user wrote.
    """
    for other, names in READ.items():
        if registry != other and registry in BUILT_IN:
            yield from _without_effect(config, explicit, names, f"only the registry {other} reads it")


def _without_effect(config: Any, explicit: Collection[str], names: Iterable[str], reason: str) -> Iterator[Decision]:
    for name in names:
        if f"{SECTION}.{name}" in explicit:
            asked = written_value(getattr(config.cluster.name_resolve, name))
            yield Decision(f"{SECTION}.{name}", asked, "no effect", reason)
