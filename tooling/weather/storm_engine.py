"""The inference engine of a storm: servers that announce themselves in a folder, short time limits, a skewed clock."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from archon_core.contracts.rollout import RolloutConfig
from archon_rollout.pool.client import PoolClient
from archon_rollout.pool.pool import Pool
from archon_rollout.publication.publisher import Publisher
from archon_rollout.registries.folder import FolderRegistry
from archon_rollout.served.driver import ServedDriver
from archon_rollout.served.engine import ServedEngine
from weather.options import StormOptions
from weather.records import Log
from weather.task import BUCKET_BYTES


@dataclass(frozen=True)
class TrainerPlace:
    """What a rank needs.

    Attributes:
        options: of the storm.
        folder: of the storm.
        registry: folder of the registry.
        token: the run's secret.
    """

    options: StormOptions
    folder: Path
    registry: Path
    token: str


class SkewedClock:
    """A clock that never goes back, but runs fast and jumps ahead."""

    def __init__(self) -> None:
        self._offset = 0.0
        self._rate = 1.0
        self._start = time.monotonic()

    def skew(self, seconds: float) -> None:
        """Jump by at most a second, and run up to a tenth faster or slower from now on."""
        now = self()
        self._start, self._offset = time.monotonic(), now + min(abs(seconds), 1.0)
        self._rate = 1.1 if seconds > 0 else 0.9

    def __call__(self) -> float:
        return self._offset + self._rate * (time.monotonic() - self._start)


class StormEngine(ServedEngine):
    """The engine with servers that announce themselves in a folder, and a clock of the storm."""

    def __init__(self, place: TrainerPlace, log: Log, **arguments: Any) -> None:
        self._place, self._log = place, log
        self.clock = SkewedClock()
        options = place.options
        config = RolloutConfig(
            backend=f"served:d{options.servers}",
            setup_timeout=options.setup_seconds,
            request_timeout=options.request_seconds,
            request_retries=20,
            health_check_interval_seconds=0.2,
            health_check_timeout_seconds=options.probe_seconds,
            health_check_failure_threshold=2,
            topology_change_cooldown_seconds=0.0,
            weight_transport=options.transport,
            weight_timeout=options.call_seconds,
        )
        super().__init__(config, **arguments)

    def _start(self, folder: Path, *_: object) -> None:
        self._driver = driver = ServedDriver(self._config, token=self._place.token)
        registry = FolderRegistry(self._place.registry, clock=self.clock)
        self._pool = Pool(registry, driver, self._config, clock=self.clock)
        self._client = PoolClient(self._pool, driver, self._config)
        self._pool.start()

    def _build_publisher(self, folder: Path | None) -> Publisher:
        publisher = super()._build_publisher(folder)
        publisher._options = replace(publisher._options, bucket_bytes=BUCKET_BYTES)
        if publisher._transport is not None:
            context = replace(publisher._transport._context, bucket_bytes=BUCKET_BYTES)
            publisher._transport._context = context
            self._log.write("transport", run=context.run)
        return publisher

    def restart_transport(self, folder: Path) -> None:
        """Free the transport's memory and allocate it again, as a restarted trainer does. Rank 0 only."""
        self._publisher.close()
        self._publisher = self._build_publisher(folder)

    def wait_for_targets(self, incarnations: list[str], *, timeout: float) -> None:
        """Wait until servers are in service or may join. Rank 0 only."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            members = self._pool.status().members
            if all(name in members and members[name].state != "out" for name in incarnations):
                return
            time.sleep(0.02)
