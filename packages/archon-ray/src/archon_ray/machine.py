"""What runs on a machine of the cluster: an actor that starts processes, watches and ends them.

Ranks are ordinary child processes of the actor, so a rank that hangs can be killed, and Ray's threads and signal
handlers are not in its way. They end when the actor ends, and Ray ends the actor with the run. Calls overlap, on
threads of Ray.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from archon_core.errors import ConfigError
from archon_core.ranks.addresses import free_port
from archon_core.ranks.environment import LAUNCHER_PID
from archon_core.ranks.error_file import RankError, read_error
from archon_core.ranks.local_ranks import LocalRanks, RankStatus

NODE_ADDRESS = "ARCHON_NODE_ADDRESS"
"""Environment variable of ranks and servers: their machine's address in the Ray cluster."""

COMPARED = ("archon-core", "torch", "ray")
"""Packages that need the same version on all machines."""

OUTPUT_BYTES = 65536
"""Output of a process that one report has at most."""


@dataclass(frozen=True)
class Place:
    """A machine, as its actor describes it.

    Attributes:
        host: its name.
        address: its address in the cluster.
        node: Ray's id of it.
        versions: of Python and of ``COMPARED`` packages; empty for one that is missing.
        missing: folders of the run that do not exist there.
    """

    host: str
    address: str
    node: str
    versions: Mapping[str, str]
    missing: Sequence[str] = ()


@dataclass(frozen=True)
class Program:
    """A process to start.

    Attributes:
        rank: number of the rank, or of the server.
        arguments: of Python.
        environment: variables to add.
        log: file for both of its streams.
        folder: working directory.
        error: file into which a rank writes its error; empty for none.
    """

    rank: int
    arguments: Sequence[str]
    environment: Mapping[str, str]
    log: str
    folder: str
    error: str = ""


@dataclass(frozen=True)
class Report:
    """How the processes of a machine are.

    Attributes:
        ranks: their states.
        output: rank -> output since the last report.
        errors: rank -> the error that it wrote, for ranks that have ended.
    """

    ranks: Sequence[RankStatus] = ()
    output: Mapping[int, bytes] = field(default_factory=dict)
    errors: Mapping[int, RankError] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether all processes have ended and all their output has been reported."""
        return bool(self.ranks) and not self.output and all(rank.code is not None for rank in self.ranks)


class Machine:
    """The actor of one bundle.

    Args:
        node: Ray's id of the machine.
        address: the machine's address in the cluster.
        cluster: address of the cluster, for processes that use it.
    """

    def __init__(self, node: str, address: str, cluster: str) -> None:
        self._node, self._address = node, address
        self._programs: dict[int, Program] = {}
        self._ranks = LocalRanks()
        self._lock = threading.Lock()
        # Ray sets it to the actor's CPUs, whatever the number of ranks.
        os.environ.pop("OMP_NUM_THREADS", None)
        os.environ.update({NODE_ADDRESS: address, **({"RAY_ADDRESS": cluster} if cluster else {})})

    def describe(self, folders: Sequence[str]) -> Place:
        """This machine; ``folders`` are those that the run needs here."""
        versions = {"python": platform.python_version(), **{name: _version(name) for name in COMPARED}}
        missing = [folder for folder in folders if not Path(folder).is_dir()]
        return Place(socket.gethostname(), self._address, self._node, versions, missing)

    def free_port(self) -> int:
        """A port that nobody uses at the moment."""
        return free_port(self._address)

    def start(self, programs: Sequence[Program]) -> Report:
        """Start processes."""
        threads = max(1, len(os.sched_getaffinity(0)) // len(programs))
        with self._lock, _usual_signals():
            for program in programs:
                environment = {
                    "OMP_NUM_THREADS": str(threads),
                    "PYTHONUNBUFFERED": "1",  # keep the last lines of a killed rank
                    **program.environment,
                    **({LAUNCHER_PID: str(os.getpid())} if program.error else {}),
                }
                log = Path(program.log)
                try:
                    log.parent.mkdir(parents=True, exist_ok=True)
                    command = [sys.executable, *program.arguments]
                    self._ranks.start(program.rank, command, environment, log, folder=program.folder)
                except OSError as error:
                    self._ranks.kill()
                    raise ConfigError(f"{socket.gethostname()}: cannot start rank {program.rank}: {error}") from error
                self._programs[program.rank] = program
            return Report(self._ranks.ranks)

    def report(self, positions: Mapping[int, int] | None) -> Report:
        """How the processes are.

        Args:
            positions: rank -> bytes of its output that have been reported before; ``None`` to report no output.
        """
        with self._lock:
            self._ranks.poll()
            ranks = self._ranks.ranks
        output, errors = {}, {}
        for rank in ranks:
            program = self._programs[rank.rank]
            if positions is not None and (new := _read(Path(program.log), positions.get(rank.rank, 0))):
                output[rank.rank] = new
            if rank.code and program.error and (error := read_error(program.error)) is not None:
                errors[rank.rank] = error
        return Report(ranks, output, errors)

    def send_signal(self, number: int) -> None:
        """Send a signal to every process."""
        with self._lock:
            self._ranks.send_signal(number)

    def kill(self) -> None:
        """Kill every process with its child processes."""
        with self._lock:
            self._ranks.kill()


@contextlib.contextmanager
def _usual_signals() -> Iterator[None]:
    """Block no signals in this thread: Ray blocks SIGINT in its processes, and child processes inherit that."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, set())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _read(path: Path, position: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(position)
            return file.read(OUTPUT_BYTES)
    except FileNotFoundError:
        return b""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
