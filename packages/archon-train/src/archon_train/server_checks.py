"""What a dry run says about the servers of ``rollout.backend``: their transport, options and programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archon_core.contracts.decisions import Decision
from archon_core.contracts.serving import ServerCheck, ServerDriverSpec
from archon_core.errors import ArchonError, ConfigError
from archon_core.layout import Layout
from archon_core.plugins.transport_choice import choose_transport
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
        check = driver.load_part("check")(config, layout=layout, option="rollout") if driver.check else None
    except ArchonError as error:
        return [Obstacle(f"rollout.backend: {error}", "environment")], []
    obstacles: list[Obstacle] = []
    decisions: list[Decision] = []
    try:
        decisions += choose_transport(config.rollout.weight_transport, layout, driver, registry)[1]
    except ConfigError as error:
        obstacles.append(Obstacle(str(error), "config"))
    if check is not None:
        obstacles += _obstacles_of(check)
    return obstacles, decisions


def check_scoring_servers(config: Any, layout: Layout, registry: Registry, *, option: str) -> list[Obstacle]:
    """The obstacles of servers that only score with frozen weights.

    Args:
        config: the run's configuration.
        layout: of ``option``.backend.
        registry: the installed specs.
        option: section of the servers.
    """
    try:
        driver = registry.get(ServerDriverSpec, layout.backend)
        check = driver.load_part("check")(config, layout=layout, option=option) if driver.check else ServerCheck()
    except ArchonError as error:
        return [Obstacle(f"{option}.backend: {error}", "environment")]
    return _obstacles_of(check)


def _obstacles_of(check: ServerCheck) -> list[Obstacle]:
    found = [Obstacle(text, "config") for text in check.problems]
    return [*found, Obstacle(check.missing, "environment")] if check.missing else found
