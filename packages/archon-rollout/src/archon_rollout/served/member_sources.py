"""Sources of a run's servers: the run starts them, ``rollout.addresses`` lists them, or they announce themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from archon_core.contracts.rollout import RolloutConfig
from archon_core.contracts.server_registry import ServerRegistry
from archon_core.serving.discovery import Discovery
from archon_core.serving.record import ServerRecord
from archon_rollout.pool.member_sources import MemberSources
from archon_rollout.registries.addresses import AddressRegistry
from archon_rollout.registries.memory import MemoryRegistry


def build_sources(
    started: Sequence[ServerRecord], config: RolloutConfig, discovery: Discovery | None, *, kind: str
) -> MemberSources:
    """The registries of a run as one.

    Args:
        started: servers that the run has started.
        config: the section ``rollout``.
        discovery: where other servers are listed; ``None`` for nowhere.
        kind: kind of the run's servers.

    Raises:
        ConfigError: the configured registry has invalid options.
        ServerError: it cannot be read. Later failures leave the servers listed as they were.
    """
    sources: list[ServerRegistry] = []
    if started:
        own = MemoryRegistry()
        for record in started:
            own.announce(record.incarnation, record, ttl=math.inf)
        sources.append(own)
    lists_addresses = discovery is not None and discovery.spec.entries == "addresses"
    if discovery is not None:
        found = discovery.open()
        found.list()
        sources.append(found)
    if config.addresses and not lists_addresses:
        sources.append(AddressRegistry(config.addresses, kind))
    return MemberSources(sources, kind=kind)
