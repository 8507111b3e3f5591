"""One inference server of a run, and its entry in the run's registry, for launchers that start servers on any machine.

The agent starts a server of any kind, announces it when it is ready, and withdraws it before it ends. It ends when it
gets a signal, when the server ends, and when the run has ended.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archon_core.config.partial import read_part
from archon_core.config.root import RootSchema
from archon_core.config.rules import folder_name, option
from archon_core.contracts.rollout import RolloutConfig
from archon_core.contracts.server_registry import Announcement, ServerRegistry, ServerRegistrySpec
from archon_core.contracts.serving import ServerDriver, ServerDriverSpec
from archon_core.errors import ServerError, UncertainCallError
from archon_core.layout import backend_table, parse_layout
from archon_core.plugins import registry
from archon_core.plugins.inference_engines import inference_engines
from archon_core.ranks.addresses import free_port
from archon_core.serving.discovery import Discovery
from archon_core.serving.guard import guarded
from archon_core.serving.model_folder import Architecture
from archon_core.serving.record import ServerRecord
from archon_core.serving.run_options import PlaceCluster
from archon_core.serving.run_token import run_token

POLL_SECONDS = 0.2
READY_SECONDS = 10.0
"""Time limit of one question whether the server is ready."""

TTL_SECONDS = 15.0
"""Seconds after which the entry of a lost server expires."""

STOP_SECONDS = 25.0
"""Time for a server to finish its requests after SIGTERM; SLURM kills it after ``KillWait``, 30 s by default."""


@dataclass
class ServerOptions:
    """The options of a run that its servers need, with archon-train's defaults.

    Attributes:
        experiment_name: name of a group of runs.
        trial_name: name of the run.
        cluster: the machines.
        rollout: the inference engine.
    """

    experiment_name: str = option("archon", folder_name)
    trial_name: str = option("trial0", folder_name)
    cluster: PlaceCluster = field(default_factory=PlaceCluster)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)


ROOT = RootSchema(
    ServerOptions,
    {ServerRegistrySpec.kind: ("cluster.name_resolve.type",), ServerDriverSpec.kind: ("rollout.backend",)},
)


class ServerAgent:
    """One server.

    Args:
        source: the run's YAML file.
        overrides: of the file.
        folder: the run folder.
        number: of the server.
        host: this machine's address, at which the trainer reaches the server.
        environment: variables of the server.
        has_run_ended: whether the run has ended, so that nobody needs the server any more.
    """

    def __init__(
        self,
        source: str,
        overrides: Sequence[str],
        folder: str,
        number: int,
        *,
        host: str,
        environment: Mapping[str, str],
        has_run_ended: Callable[[], bool],
    ) -> None:
        self._config: Any = read_part(source, overrides, root=ROOT, registry=registry())
        self._servers = Path(folder) / "servers"
        self._number, self._host = number, host
        self._environment, self._has_run_ended = environment, has_run_ended
        self._signal = 0
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Serve until the end; returns the exit code. Must be called in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)
        architecture = self._wait_for_model()
        if architecture is None:
            return 0
        driver, address = self._start(architecture)
        announcement: Announcement | None = None
        opened = Discovery.of(self._config).open()
        try:
            record = self._wait_until_ready(driver, address)
            if record is not None:
                announcement = _announce(opened, record)
                print(f"server {self._number} at {record.address} is announced", flush=True)
                self._hold(announcement)
            return self._code()
        finally:
            if announcement is not None:
                announcement.withdraw()  # first: no trainer should choose a server that ends
            opened.close()
            self._stop()

    def _handle(self, number: int, frame: object) -> None:
        self._signal = number

    def _wait_for_model(self) -> Architecture | None:
        """The model, which the trainer describes when it has started; ``None`` if the run ends before."""
        while not self._is_over():
            found = Architecture.read(self._servers / "model")
            if found is not None:
                return found
            time.sleep(POLL_SECONDS)
        return None

    def _start(self, model: Architecture) -> tuple[ServerDriver, str]:
        table = backend_table((), inference_engines(registry()))
        layout = parse_layout(self._config.rollout.backend, backends=table, option="rollout.backend")
        spec = registry().get(ServerDriverSpec, layout.backend)
        token = run_token(self._servers)
        options = getattr(self._config, spec.name, None)
        driver: ServerDriver = spec.load()(self._config.rollout, options=options, token=token)
        port = free_port(self._host)
        launch = driver.launch(
            str(model.folder),
            layout=layout,
            index=self._number,
            host=self._host,
            port=port,
            dtype=model.dtype,
            model_spec=model.model_spec,
        )
        self._process = subprocess.Popen(
            guarded(launch),
            env={**os.environ, **self._environment, **launch.environment},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        return driver, f"[{self._host}]:{port}" if ":" in self._host else f"{self._host}:{port}"

    def _wait_until_ready(self, driver: ServerDriver, address: str) -> ServerRecord | None:
        """The server's record; ``None`` if the server or the run ends before."""
        while not self._is_over():
            with contextlib.suppress(UncertainCallError):  # it may be too busy with its start to answer in time
                record = driver.ready(address, timeout=READY_SECONDS)
                if record is not None:
                    return record
            time.sleep(POLL_SECONDS)
        return None

    def _hold(self, announcement: Announcement) -> None:
        """Refresh the server's entry until its end. An unreachable registry does not disturb the server."""
        next_refresh = time.monotonic() + TTL_SECONDS / 3
        while not self._is_over():
            if time.monotonic() >= next_refresh:
                next_refresh = time.monotonic() + TTL_SECONDS / 3
                try:
                    announcement.refresh()
                except ServerError as error:
                    print(f"cannot announce this server, trying again: {error}", file=sys.stderr, flush=True)
            time.sleep(POLL_SECONDS)

    def _is_over(self) -> bool:
        ended = self._process is not None and self._process.poll() is not None
        return ended or self._signal != 0 or self._has_run_ended()

    def _code(self) -> int:
        ended = self._process.poll() if self._process is not None else None
        return 0 if ended is None else 1

    def _stop(self) -> None:
        """End the server with all of its processes."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _announce(opened: ServerRegistry, record: ServerRecord) -> Announcement:
    id = re.sub(r"[^A-Za-z0-9._]+", "-", record.address).strip("-")
    while True:
        try:
            return opened.announce(id, record, TTL_SECONDS)
        except ServerError as error:
            print(f"cannot announce this server, trying again: {error}", file=sys.stderr, flush=True)
            time.sleep(1)
