"""What a dry run says about the servers of ``rollout.backend``: their transport, options and programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archon_core.contracts.decisions import Decision
from archon_core.contracts.serving import ServerDriverSpec
from archon_core.errors import ArchonError, ConfigError
from archon_core.layout import Layout
from archon_core.plugins.transport_choice import choose_transport
from archon_train.run_plan import Obstacle
from archon_train.weight_devices import device_obstacles

if TYPE_CHECKING:
    from archon_core.plugins import Registry


def check_servers(config: Any, layout: Layout, registry: Registry) -> tuple[list[Obstacle], list[Decision]]:
    """The obstacles and decisions of a run on servers.

    Args:
        config: the run's configuration. Its weight transport, if any, is one of the registry.
        layout: of ``rollout.backend``.
        registry: the installed specs.
    """
    try:
        driver = registry.get(ServerDriverSpec, layout.backend)
        check = driver.load_part("check")(config, layout=layout) if driver.check else None
    except ArchonError as error:
        return [Obstacle(f"rollout.backend: {error}", "environment")], []
    obstacles: list[Obstacle] = []
    decisions: list[Decision] = []
    try:
        transport, chosen = choose_transport(config.rollout.weight_transport, layout, driver, registry)
        decisions += chosen
        obstacles += device_obstacles(config, transport, driver.transports_for(layout), registry)
    except ConfigError as error:
        obstacles.append(Obstacle(str(error), "config"))
    if check is not None:
        obstacles += [Obstacle(text, "config") for text in check.problems]
        obstacles += [Obstacle(check.missing, "environment")] if check.missing else []
    return obstacles, decisions
