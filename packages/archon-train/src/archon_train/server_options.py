"""Checks of the options about inference servers, before a run starts. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from archon_core.contracts.decisions import Decision
from archon_core.layout import Layout

SECTION = "cluster.name_resolve"


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


def unused_registry(explicit: Collection[str]) -> Iterator[Decision]:
    """The decision about a registry of servers in a run that has none."""
    options = sorted(option for option in explicit if option.startswith(f"{SECTION}."))
    if options:
        yield Decision(", ".join(options), "set", "no effect", "inference servers are listed there; this run has none")
