"""The inference engine of a storm: servers that announce themselves in a folder, short time limits, a skewed clock."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archon_core.contracts.rollout import RolloutConfig
from archon_core.contracts.server_registry import NameResolveConfig, ServerRegistry
from archon_core.serving.discovery import Discovery
from archon_rollout.registries.folder import FolderRegistry
from archon_rollout.served.engine import ServedEngine
from archon_rollout.server.environment import TOKEN
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


@dataclass(frozen=True)
class SkewedDiscovery(Discovery):
    """Finds servers in a folder, by a skewed clock.

    Attributes:
        folder: of the registry.
        clock: tells which entries have expired.
    """

    folder: Path = Path()
    clock: Callable[[], float] = time.monotonic

    def open(self) -> ServerRegistry:
        """The registry of the folder."""
        return FolderRegistry(self.folder, clock=self.clock)


class StormEngine(ServedEngine):
    """The engine with servers that announce themselves in a folder, and a clock of the storm."""

    def __init__(self, place: TrainerPlace, log: Log, **arguments: Any) -> None:
        os.environ[TOKEN] = place.token
        self._log = log
        self.clock = SkewedClock()
        options = place.options
        config = RolloutConfig(
            backend=f"served:d{options.servers}",
            start_servers=False,
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
        discovery = SkewedDiscovery(NameResolveConfig(), "storm", folder=place.registry, clock=self.clock)
        super().__init__(config, discovery=discovery, clock=self.clock, bucket_bytes=BUCKET_BYTES, **arguments)
        self._log.write("transport", run=self.transport_run)

    def restart_transport(self) -> None:
        """Free the transport's memory and allocate it again, as a restarted trainer does. Rank 0 only."""
        super().restart_transport()
        self._log.write("transport", run=self.transport_run)

    def wait_for_targets(self, incarnations: list[str], *, timeout: float) -> None:
        """Wait until servers are in service or may join. Rank 0 only."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            members = self.server_status().members
            if all(name in members and members[name].state != "out" for name in incarnations):
                return
            time.sleep(0.02)
