"""What a dry run says about the servers of ``rollout.backend``: their transport, options and programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archon_core.contracts.decisions import Decision
from archon_core.contracts.serving import ServerDriverSpec, WeightTransportSpec
from archon_core.errors import ArchonError
from archon_core.layout import Layout
from archon_train.run_plan import Obstacle

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
    obstacles, decisions = [], []
    transport, allowed = config.rollout.weight_transport, driver.transports_for(layout)
    if transport is None:
        decisions.append(
            Decision(
                option="rollout.weight_transport",
                requested="null",
                effective=allowed[0],
                reason=f"the first transport of {driver.name} servers",
            )
        )
    elif registry.get(WeightTransportSpec, transport).name not in allowed:
        obstacles.append(
            Obstacle(
                f"rollout.weight_transport: found {transport}; servers of {layout} receive weights by "
                f"{', '.join(allowed)}; choose one",
                "config",
            )
        )
    if check is not None:
        obstacles += [Obstacle(text, "config") for text in check.problems]
        obstacles += [Obstacle(check.missing, "environment")] if check.missing else []
    return obstacles, decisions
