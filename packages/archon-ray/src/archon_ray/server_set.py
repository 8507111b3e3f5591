"""The inference servers of a run: an actor per server, which restarts of the trainer leave alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from archon_core.contracts.launching import StopRequest
from archon_core.errors import ArchonError
from archon_ray.groups import Group
from archon_ray.machine import Program, Report
from archon_ray.places import passed_on
from archon_ray.remote import Answer
from archon_ray.server import NUMBER

if TYPE_CHECKING:
    from archon_ray.cluster import Cluster, Placed, RayMachine

END_SECONDS = 30.0
"""Time for servers to finish their requests."""

LOOK_SECONDS = 1.0
"""Time between two questions to a server's actor."""


@dataclass
class StartedServer:
    """One server.

    Attributes:
        machine: its actor.
        answer: to the last call.
        asked: time of that call.
        gone: whether the server has ended.
    """

    machine: RayMachine
    answer: Answer
    asked: float
    gone: bool = False


class ServerSet:
    """Starts servers, reports those that end, and ends them.

    Args:
        cluster: the cluster.
        group: a bundle per server.
        path: the ``Servers`` file.
        logs: folder of the servers' output.
        note: prints a line for the user.
    """

    def __init__(self, cluster: Cluster, group: Group, path: Path, logs: Path, note: Callable[[str], None]) -> None:
        self._cluster, self._group, self._path = cluster, group, path
        self._logs, self._note = logs, note
        self._placed: Placed | None = None
        self._servers: dict[int, StartedServer] = {}

    def start(self, stop: StopRequest) -> None:
        """Start the servers that do not run.

        Raises:
            ConfigError: Ray has found no place for them.
        """
        if self._placed is None:
            self._placed = self._cluster.place(self._group, stop)
        if self._placed is None:
            return
        for number in range(len(self._group.bundles)):
            before = self._servers.get(number)
            if before is not None and not before.gone:
                continue
            if before is not None:
                before.machine.end()
            machine = self._cluster.start_machine(self._placed, number)
            # If the bundle's machine was lost, the call waits until Ray has found another one.
            answer = machine.ask("start", [self._program(number)])
            self._servers[number] = StartedServer(machine, answer, time.monotonic())

    def look(self) -> None:
        """Report servers that have ended by themselves."""
        for number, server in self._servers.items():
            if not server.gone and (cause := self._cause(server)):
                server.gone = True
                self._note(f"server {number} is gone: {cause}; its output is in {self._log(number)}")

    def close(self) -> None:
        """End all servers. They finish their requests and withdraw their entries."""
        for server in self._servers.values():
            if not server.gone:
                server.machine.ask("send_signal", int(signal.SIGTERM))
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline and not all(server.gone for server in self._servers.values()):
            for server in self._servers.values():
                server.gone = server.gone or bool(self._cause(server, every=0.0))
            time.sleep(0.1)
        for server in self._servers.values():
            server.machine.end()
        self._servers.clear()
        if self._placed is not None:
            self._cluster.remove(self._placed)
            self._placed = None

    @staticmethod
    def _cause(server: StartedServer, every: float = LOOK_SECONDS) -> str:
        """Why a server has ended; empty while it runs."""
        if not server.answer.ready():
            return ""
        try:
            report: Report = server.answer.result()
        except ArchonError as error:
            return str(error)
        if report.ended:
            return f"it ended with code {report.ranks[0].code}"
        if time.monotonic() - server.asked >= every:
            server.answer = server.machine.ask("report", None)
            server.asked = time.monotonic()
        return ""

    def _program(self, number: int) -> Program:
        arguments = ["-P", "-m", "archon_ray.server", str(self._path)]
        environment = {**passed_on(os.environ), NUMBER: str(number)}
        return Program(number, arguments, environment, str(self._log(number)), str(Path.cwd()))

    def _log(self, number: int) -> Path:
        return self._logs / f"server-{number}.log"
