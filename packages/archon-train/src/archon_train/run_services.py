"""What a run needs beside its engines: where ranks meet, where servers are listed, who collects. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from archon_core.contracts.launching import Service
from archon_core.layout import Layout
from archon_core.serving.discovery import Discovery

FIRST = "machine 0"


def plan_services(config: Any, layouts: Mapping[str, Layout], n_ranks: int) -> Iterator[Service]:
    """The services of a run.

    Args:
        config: the run's configuration.
        layouts: role -> layout.
        n_ranks: ranks of the trainer.
    """
    if n_ranks > 1:
        where = f"{FIRST}, in the {'launcher' if config.scheduler.type == 'local' else 'first rank'}"
        yield Service("rendezvous store", where)
    rollout = layouts.get("rollout")
    if rollout is None:
        return
    ahead = config.rollout.max_head_offpolicyness > 0
    yield Service("collector", FIRST if ahead else f"{FIRST}, in the first rank", process=ahead)
    if rollout.on_trainer_ranks:
        return
    yield Service("registry", _registry(config))
    if config.rollout.weight_transport == "distributed":
        yield Service("weight store", FIRST, process=True)


def _registry(config: Any) -> str:
    found = Discovery.of(config)
    name = found.config.type
    if config.rollout.addresses:
        return "rollout.addresses"
    if name in ("folder", "nfs"):
        return f"{name}: {found.config.nfs_record_root}/{found.run}/servers"
    return f"{name}: {found.config.etcd3_addr}" if name.startswith("etcd") else name
