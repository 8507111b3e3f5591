"""What a dry run says about the servers of ``rollout.backend``: their transport, options and programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archon_core.config.packages import MissingPackage
from archon_core.contracts.decisions import Decision
from archon_core.contracts.serving import ServerCheck, ServerDriverSpec
from archon_core.errors import ArchonError, ConfigError
from archon_core.layout import Layout
from archon_core.plugins.transport_choice import choose_transport, may_be_elsewhere
from archon_train.run_plan import Need, Obstacle
from archon_train.weight_devices import device_obstacles

if TYPE_CHECKING:
    from archon_core.plugins import Registry


@dataclass(frozen=True)
class ServersFound:
    """Obstacles to starting the servers, and decisions about them."""

    obstacles: tuple[Obstacle, ...] = ()
    needs: tuple[Need, ...] = ()
    decisions: tuple[Decision, ...] = ()


def check_servers(config: Any, layout: Layout, registry: Registry, *, elsewhere: bool = False) -> ServersFound:
    """Examine the servers of a run.

    Args:
        config: the run's configuration. Its weight transport, if any, is one of the registry.
        layout: of ``rollout.backend``.
        registry: the installed specs.
        elsewhere: whether the run's launcher starts the servers on other machines than the trainer.
    """
    try:
        driver = registry.get(ServerDriverSpec, layout.backend)
        check = _check(driver, config, layout, "rollout")
    except ArchonError as error:
        return ServersFound((Obstacle(f"rollout.backend: {error}", "environment"),))
    problems = list(check.problems)
    obstacles: list[Obstacle] = []
    decisions: tuple[Decision, ...] = ()
    asked = config.rollout.weight_transport
    try:
        elsewhere = elsewhere or (asked is None and may_be_elsewhere(config.rollout))
        transport, chosen = choose_transport(asked, layout, driver, registry, elsewhere=elsewhere)
        decisions = tuple(chosen)
        obstacles += device_obstacles(config, transport, driver.transports_for(layout), registry)
    except ConfigError as error:
        problems.append(str(error))
    obstacles += [Obstacle(text, "config") for text in problems]
    return ServersFound(tuple(obstacles), _needs(check, "rollout", layout), decisions)


def check_scoring_servers(config: Any, layout: Layout, registry: Registry, *, option: str) -> ServersFound:
    """The obstacles of servers that only score with frozen weights.

    Args:
        config: the run's configuration.
        layout: of ``option``.backend.
        registry: the installed specs.
        option: section of the servers.
    """
    try:
        check = _check(registry.get(ServerDriverSpec, layout.backend), config, layout, option)
    except ArchonError as error:
        return ServersFound((Obstacle(f"{option}.backend: {error}", "environment"),))
    return ServersFound(tuple(Obstacle(text, "config") for text in check.problems), _needs(check, option, layout))


def _check(driver: ServerDriverSpec, config: Any, layout: Layout, option: str) -> ServerCheck:
    return driver.load_part("check")(config, layout=layout, option=option) if driver.check else ServerCheck()


def _needs(check: ServerCheck, option: str, layout: Layout) -> tuple[Need, ...]:
    """The program of the servers, if it is missing."""
    if not check.program:
        return ()
    return (Need(MissingPackage(check.program, check.missing), (f"{option}.backend: {layout}",)),)
