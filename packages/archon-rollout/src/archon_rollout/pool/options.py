"""Options of the pool of servers, under ``rollout``, with AReaL's names where it has them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from archon_core.config.rules import NOT_NEGATIVE, POSITIVE, number, option

_SECONDS = number(above=0)


@dataclass
class PoolOptions:
    """How servers join and leave, and how requests to them are repeated.

    Attributes:
        setup_timeout: seconds to wait at the start for ``min_servers`` servers in service.
        request_timeout: seconds for one request, all its attempts included.
        request_retries: attempts after the first one, each on the server with the least work.
        min_servers: least number of servers. With fewer, the run waits for ``setup_timeout`` and then ends with an
            error that lists the servers that left.
        enable_health_monitor: probe every server with a request for one token.
        health_check_interval_seconds: time between two rounds of probes.
        health_check_timeout_seconds: time limit of a probe.
        health_check_failure_threshold: consecutive failed probes after which a server is out.
        enable_topology_discovery: let servers join that the registry lists after the start.
        topology_change_cooldown_seconds: time after a change of the topology during which no server joins.
    """

    setup_timeout: float = option(300.0, _SECONDS)
    request_timeout: float = option(3600.0, _SECONDS)
    request_retries: int = option(3, NOT_NEGATIVE)
    min_servers: int = option(1, POSITIVE)
    enable_health_monitor: bool = True
    health_check_interval_seconds: float = option(5.0, _SECONDS)
    health_check_timeout_seconds: float = option(10.0, _SECONDS)
    health_check_failure_threshold: int = option(3, POSITIVE)
    enable_topology_discovery: bool = True
    topology_change_cooldown_seconds: float = option(30.0, number(least=0))
