"""The first rank's connection to the servers of a run: their driver, the processes that it started, pool and client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archon_core.contracts.engine import TrainEngine
from archon_core.contracts.rollout import RolloutConfig
from archon_core.contracts.serving import ServerDriver, ServerDriverSpec
from archon_core.errors import ConfigError
from archon_core.layout import Layout
from archon_core.serving.descriptors import connection_limit
from archon_core.serving.discovery import Discovery
from archon_core.serving.model_folder import Architecture
from archon_core.serving.run_token import TOKEN, run_token
from archon_rollout.pool.client import PoolClient
from archon_rollout.pool.pool import Pool
from archon_rollout.pool.status_file import StatusFile
from archon_rollout.pool.stopping import Stop
from archon_rollout.served.finding import missing_servers
from archon_rollout.served.launching import ServerProcesses
from archon_rollout.served.member_sources import build_sources
from archon_rollout.served.model_files import write_architecture


@dataclass(frozen=True)
class Connection:
    """What the first rank needs of the servers.

    Attributes:
        driver: calls the servers.
        token: the run's secret.
        pool: watches the servers.
        client: generates on them.
        processes: the servers that this run started; ``None`` for none.
        architecture: what servers without weights start from; ``None`` with ``rollout.addresses``, unless adapters are
            published apart.
    """

    driver: ServerDriver
    token: str
    pool: Pool
    client: PoolClient
    processes: ServerProcesses | None = None
    architecture: Architecture | None = None


def connect(
    config: RolloutConfig,
    layout: Layout,
    kind: ServerDriverSpec,
    *,
    trainer: TrainEngine,
    folder: Path,
    options: Any,
    discovery: Discovery | None,
    stop: Stop,
    clock: Callable[[], float],
    adapter: Mapping[str, Any] | None = None,
) -> Connection:
    """Start the servers, or find running ones, and watch them. Arguments as of ``ServedEngine``.

    Raises:
        ConfigError, ServerError: a server cannot be started or reached. Servers that were started are ended.
        StoppedError: the user stopped the run.
    """
    token = run_token(folder)
    driver: ServerDriver = kind.load()(config, options=options, token=token)
    missing = missing_servers(driver, config.addresses, timeout=config.setup_timeout, stop=stop)
    if missing:
        raise ConfigError(
            f"rollout.addresses: found no {kind.name} server at {', '.join(missing)}; start it, and give trainer and "
            f"server the same secret ({TOKEN} of archon train and archon serve)"
        )
    # Also for servers that others start with it. Folders of adapters need their configuration in any case.
    is_needed = not config.addresses or adapter is not None
    architecture = write_architecture(trainer, folder / "model", adapter) if is_needed else None
    processes = None
    if config.starts_servers and architecture is not None:
        processes = ServerProcesses(
            driver,
            layout,
            model=architecture,
            folder=folder,
            environment=own.env_vars if (own := config.scheduling_spec) is not None else None,
            stop=stop,
        )
    try:
        started = [] if processes is None else processes.start(timeout=config.setup_timeout)
        sources = build_sources(started, config, discovery, kind=kind.name)
    except BaseException:
        if processes is not None:
            processes.stop()
        raise
    status_file = StatusFile(folder, config.health_check_interval_seconds, clock)
    pool = Pool(sources, driver, config, clock=clock, status_file=status_file, stop=stop)
    pool.start()
    client = PoolClient(pool, driver, config, max_connections=connection_limit())
    return Connection(driver, token, pool, client, processes, architecture)
