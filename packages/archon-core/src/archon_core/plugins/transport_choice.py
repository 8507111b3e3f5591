"""Resolves ``rollout.weight_transport`` for the servers of ``rollout.backend``."""

from __future__ import annotations

from collections.abc import Sequence

from archon_core.contracts.decisions import Decision
from archon_core.contracts.rollout import RolloutConfig
from archon_core.contracts.serving import ServerDriverSpec
from archon_core.contracts.weight_transport import WeightTransportSpec
from archon_core.errors import ConfigError
from archon_core.layout import Layout
from archon_core.plugins.registry import Registry
from archon_core.ranks.addresses import is_this_machine

OPTION = "rollout.weight_transport"


def choose_transport(
    asked: str | None, layout: Layout, driver: ServerDriverSpec, registry: Registry, *, elsewhere: bool = False
) -> tuple[str, Sequence[Decision]]:
    """The name of the transport, and what to record about it.

    Args:
        asked: name or alias; ``None`` for the first transport of the servers.
        layout: of ``rollout.backend``.
        driver: of the servers.
        registry: has the transports.
        elsewhere: whether the servers run on other machines than the trainer.

    Raises:
        ConfigError: the servers do not receive by it.
        UnknownNameError: no plugin provides it.
    """
    allowed = driver.transports_for(layout)
    if elsewhere:
        one_host = {spec.name for spec in registry.all(WeightTransportSpec) if spec.one_host}
        here, allowed = allowed, tuple(name for name in allowed if name not in one_host)
        if not allowed:
            raise ConfigError(
                f"rollout.backend: found {layout}, whose servers receive weights by {', '.join(here)} only; allowed on "
                "other machines than the trainer's are kinds of servers with disk or distributed; choose one"
            )
    if asked is None:
        reason = f"the first transport that {driver.name} supports{' between machines' if elsewhere else ''}"
        return allowed[0], (Decision(OPTION, "null", allowed[0], reason),)
    name = registry.get(WeightTransportSpec, asked).name
    if name not in allowed:
        raise ConfigError(
            f"{OPTION}: found {asked}; servers of {layout}{' on other machines' if elsewhere else ''} receive weights "
            f"by {', '.join(allowed)}; choose one"
        )
    return name, ()


def may_be_elsewhere(rollout: RolloutConfig) -> bool:
    """Whether servers that the run does not start may be on other machines than this one: servers with such an address,
    and all that announce themselves, at any time and from anywhere."""
    if rollout.starts_servers:
        return False
    hosts = [address.rpartition(":")[0].strip("[]") for address in rollout.addresses]
    return not hosts or not all(map(is_this_machine, hosts))


def choose_transport_between_machines(asked: str | None, layout: Layout, registry: Registry) -> str:
    """The name of the transport to servers that a launcher starts anywhere on a cluster. Raises as
    ``choose_transport``.

    Args:
        asked: name or alias; ``None`` for the first transport of the servers between machines.
        layout: of ``rollout.backend``.
        registry: has the driver and the transports.
    """
    driver = registry.get(ServerDriverSpec, layout.backend)
    return choose_transport(asked, layout, driver, registry, elsewhere=True)[0]
