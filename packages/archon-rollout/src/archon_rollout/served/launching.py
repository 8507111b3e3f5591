"""Starts the processes of servers of any kind, waits until they are ready, and ends them."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from archon_core.contracts.serving import ServerDriver
from archon_core.errors import ConfigError, ServerError, UncertainCallError
from archon_core.layout import Layout
from archon_core.ranks.addresses import free_ports
from archon_core.ranks.priority import put_behind_caller
from archon_core.serving.guard import guarded
from archon_core.serving.model_folder import Architecture
from archon_core.serving.record import ServerRecord
from archon_rollout.pool.stopping import Stop, StoppedError, never

HOST = "127.0.0.1"
POLL_SECONDS = 0.05
LONGEST_POLL_SECONDS = 1.0
"""Servers that take minutes to start are polled less often: after a tenth of the time that has passed."""

ANSWER_SECONDS = 10.0
"""Time limit of one question whether a server is ready."""

STOP_SECONDS = 10.0
"""Time for a server to end after SIGTERM, before it is killed."""

SHOWN_LINES = 20
"""Lines of a failed server's log to show."""

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_")
"""Beginnings of the trainer's variables, with and without ``LOCAL_``: a server must not join the trainer's world."""


@dataclass(frozen=True)
class _Process:
    process: subprocess.Popen[bytes]
    log: Path
    address: str


class ServerProcesses:
    """The servers of one engine, as child processes.

    They are in sessions of their own, so Ctrl-C in a terminal reaches the trainer only, and end when this process dies.

    Args:
        driver: knows how to start them.
        layout: ``d`` servers.
        model: what they serve.
        folder: for their logs.
        frozen: whether they keep the weights of the model's folder.
        option: section of the servers, for messages.
        environment: further variables of the servers.
        devices_before: devices of this machine after the trainer's that other servers use.
        stop: whether the user has asked the run to stop.
    """

    def __init__(
        self,
        driver: ServerDriver,
        layout: Layout,
        *,
        model: Architecture,
        folder: Path,
        frozen: bool = False,
        option: str = "rollout",
        environment: Mapping[str, str] | None = None,
        devices_before: int = 0,
        stop: Stop = never,
    ) -> None:
        self._driver = driver
        self._layout = layout
        self._model = model
        self._folder = folder
        self._frozen = frozen
        self._option = option
        self._environment = environment or {}
        self._devices_before = devices_before
        self._stop = stop
        self._processes: list[_Process] = []

    def start(self, *, timeout: float) -> list[ServerRecord]:
        """Start all servers; returns their records when all are ready.

        Raises:
            ServerError: a server ended, or was not ready within ``timeout`` seconds. All are stopped then.
            StoppedError: the user stopped the run.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        try:
            for index, port in enumerate(free_ports(self._layout.servers, HOST)):
                self._processes.append(self._start(index, port))
            return [self._wait_for(index, started, timeout) for index in range(self._layout.servers)]
        except BaseException:
            self.stop()
            raise

    def check(self) -> None:
        """Raise ServerError if all servers have ended."""
        if all(started.process.poll() is not None for started in self._processes):
            raise ServerError("\n".join(self._explain_end(*item) for item in enumerate(self._processes)))

    def stop(self) -> None:
        """End all servers, and wait for them. Idempotent."""
        running = [started.process for started in self._processes if started.process.poll() is None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._processes = []

    def _start(self, index: int, port: int) -> _Process:
        launch = self._driver.launch(
            str(self._model.folder),
            layout=self._layout,
            index=index,
            host=HOST,
            port=port,
            dtype=self._model.dtype,
            model_spec=self._model.model_spec,
            frozen=self._frozen,
        )
        outer = {name: value for name, value in os.environ.items() if not _is_of_a_rank(name)}
        log = self._folder / f"server-{index}.log"
        with log.open("wb") as output:
            output.write(f"{shlex.join(launch.command)}\n".encode())  # secrets are in the environment
            output.flush()
            process = subprocess.Popen(
                guarded(launch),
                env={**outer, **self._environment, **launch.environment, **self._devices(index, launch.n_processes)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        put_behind_caller(process.pid)
        return _Process(process, log, f"{HOST}:{port}")

    def _wait_for(self, index: int, start: float, timeout: float) -> ServerRecord:
        process = self._processes[index]
        while True:
            if process.process.poll() is not None:
                raise ServerError(self._explain_end(index, process))
            with contextlib.suppress(UncertainCallError):  # it may be too busy with its start to answer in time
                record = self._driver.ready(process.address, timeout=ANSWER_SECONDS)
                if record is not None:
                    return record
            if self._stop():
                raise StoppedError(f"stopped while {self._option} server {index} started")
            passed = time.monotonic() - start
            if passed > timeout:
                raise ServerError(
                    f"server {index} was not ready within {timeout:g} s; raise {self._option}.setup_timeout, or read "
                    f"its log {process.log}:\n{_last_lines(process.log)}"
                )
            time.sleep(min(LONGEST_POLL_SECONDS, max(POLL_SECONDS, passed / 10)))

    @staticmethod
    def _explain_end(index: int, started: _Process) -> str:
        return (
            f"server {index} ended with code {started.process.returncode}; the end of its log {started.log}:\n"
            f"{_last_lines(started.log)}"
        )

    def _devices(self, index: int, n_processes: int) -> dict[str, str]:
        """The devices of a server: those after the trainer's ranks. Empty without GPUs."""
        import torch

        if not torch.cuda.is_available():
            return {}
        first = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) + self._devices_before + index * n_processes
        names = os.environ.get("CUDA_VISIBLE_DEVICES")
        known = names.split(",") if names else [str(number) for number in range(torch.cuda.device_count())]
        chosen = known[first : first + n_processes]
        if len(chosen) < n_processes:
            raise ConfigError(
                f"{self._option}.backend: found {len(known)} devices on this machine; server {index} needs "
                f"{n_processes} after the first {first}; use fewer servers, fewer ranks of the trainer, or servers on "
                f"other machines: start them there and set {self._option}.addresses"
            )
        return {"CUDA_VISIBLE_DEVICES": ",".join(chosen)}


def _is_of_a_rank(name: str) -> bool:
    return name.removeprefix("LOCAL_").startswith(RANK_VARIABLES)


def _last_lines(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-SHOWN_LINES:])
