"""One server of a storm: ``archon serve`` in a forked process, with the parts of ``weather.lies``.

The product has no hooks for this: names in ``archon_rollout.server.process`` are bound to other classes, in this
process only.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from archon_core.errors import ServerError
from archon_core.serving.record import ServerRecord
from archon_rollout.registries.folder import FolderRegistry
from archon_rollout.server import process
from archon_rollout.server.environment import TOKEN
from archon_rollout.server.model import ServedModel, parse_server_layout
from weather.faults import Faults
from weather.lies import StormCopies, StormLoop, StormService
from weather.records import Log

TTL_SECONDS = 2.0
"""Time to live of an entry in the registry."""


@dataclass(frozen=True)
class ServerPlace:
    """What a server needs to start.

    Attributes:
        folder: of the storm; holds the model's ``config.json``.
        registry: folder of the registry.
        name: of this start, such as ``server-2-0``.
        dtype: compute type.
        port: 0 for any free port.
        token: the run's secret.
        drain_seconds: time for requests to finish after SIGTERM.
    """

    folder: Path
    registry: Path
    name: str
    dtype: str
    port: int
    token: str
    drain_seconds: float

    @property
    def record(self) -> Path:
        """The file that says where the server is, once it is ready."""
        return self.folder / "records" / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """The server's own log."""
        return self.folder / f"{self.name}.jsonl"


def serve_in_storm(place: ServerPlace, commands: socket.socket) -> None:
    """Serve until a signal. Called in a forked process."""
    os.environ[TOKEN] = place.token
    log = Log(place.log)
    faults = Faults(log)
    faults.listen(commands)
    real_time = time.time
    time.time = lambda: real_time() + faults.clock_offset
    announcing = Announcing(place)
    process.EngineCopies = lambda *arguments: StormCopies(faults, *arguments)
    process.ServingLoop = lambda *arguments, **options: StormLoop(faults, *arguments, **options)
    process.Service = lambda *arguments: StormService(faults, announcing.stop, *arguments)
    announcing.start()
    process.serve(
        process.ServeOptions(
            model=ServedModel.find(str(place.folder / "config.json"), dtype=place.dtype),
            layout=parse_server_layout("archon:t1"),
            port=place.port,
            record=place.record,
            drain_seconds=place.drain_seconds,
        )
    )
    log.write("ended")


class Announcing(threading.Thread):
    """Announces the server when it is ready, and renews the entry until ``stop``."""

    def __init__(self, place: ServerPlace) -> None:
        super().__init__(name="storm-announcing", daemon=True)
        self._place = place
        self._ending = threading.Event()
        self._withdraw: Callable[[], None] = lambda: None

    def run(self) -> None:
        """The thread's body."""
        while not self._place.record.exists():
            if self._ending.wait(0.01):
                return
        record = ServerRecord.from_data(json.loads(self._place.record.read_text(encoding="utf-8")))
        registry = FolderRegistry(self._place.registry)
        announcement = None
        pause = 0.0
        while not self._ending.wait(pause):
            try:
                if announcement is None:
                    announcement = registry.announce(record.incarnation, record, TTL_SECONDS)
                    self._withdraw = announcement.withdraw
                else:
                    announcement.refresh()
                pause = TTL_SECONDS / 4
            except ServerError:
                pause = 0.1  # the registry cannot be written now

    def stop(self) -> None:
        """Withdraw the entry."""
        self._ending.set()
        self._withdraw()
