"""Starts the processes of our own servers, waits until they are ready, and ends them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from archon_core.contracts.serving import ServerDriver
from archon_core.errors import ConfigError, ServerError
from archon_core.layout import Layout
from archon_core.serving.record import ServerRecord

POLL_SECONDS = 0.05
STOP_SECONDS = 10.0
"""Time for a server to end after SIGTERM, before it is killed."""

SHOWN_LINES = 20
"""Lines of a failed server's log to show."""


@dataclass(frozen=True)
class _Process:
    process: subprocess.Popen[bytes]
    log: Path
    record: Path


class ServerProcesses:
    """The servers of one engine, as child processes.

    They are in sessions of their own, so Ctrl-C in a terminal reaches the trainer only, and end when this process dies.

    Args:
        driver: knows how to start them.
        layout: ``d`` servers of ``t`` ranks.
        model: what they serve.
        folder: for their logs.
        options: further command-line options.
        option: section of the servers, for messages.
        devices_before: devices of this machine after the trainer's that other servers use.
    """

    def __init__(
        self,
        driver: ServerDriver,
        layout: Layout,
        *,
        model: str,
        folder: Path,
        options: Sequence[str] = (),
        option: str = "rollout",
        devices_before: int = 0,
    ) -> None:
        self._driver = driver
        self._layout = layout
        self._model = model
        self._folder = folder
        self._options = options
        self._option = option
        self._devices_before = devices_before
        self._processes: list[_Process] = []

    def start(self, *, timeout: float) -> list[ServerRecord]:
        """Start all servers; returns their records when all are ready.

        Raises:
            ServerError: a server ended, or was not ready within ``timeout`` seconds. All are stopped then.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + timeout
        try:
            for index in range(self._layout.servers):
                self._processes.append(self._start(index))
            return [self._wait_for(index, deadline, timeout) for index in range(self._layout.servers)]
        except BaseException:
            self.stop()
            raise

    def check(self) -> None:
        """Raise ServerError if a server has ended."""
        for index, started in enumerate(self._processes):
            if started.process.poll() is not None:
                raise ServerError(self._explain_end(index, started))

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

    def _start(self, index: int) -> _Process:
        launch = self._driver.launch(self._model, layout=self._layout, index=index, host="127.0.0.1", port=0)
        log, record = self._folder / f"server-{index}.log", self._folder / f"server-{index}.json"
        record.unlink(missing_ok=True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*launch.command, *self._options, "--record", str(record)],
                env={**os.environ, **launch.environment, **self._devices(index, launch.n_processes)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return _Process(process, log, record)

    def _wait_for(self, index: int, deadline: float, timeout: float) -> ServerRecord:
        started = self._processes[index]
        while not started.record.exists():
            if started.process.poll() is not None:
                raise ServerError(self._explain_end(index, started))
            if time.monotonic() > deadline:
                raise ServerError(
                    f"server {index} was not ready within {timeout:g} s; raise {self._option}.setup_timeout, or read "
                    f"its log {started.log}:\n{_last_lines(started.log)}"
                )
            time.sleep(POLL_SECONDS)
        return ServerRecord.from_data(json.loads(started.record.read_text(encoding="utf-8")))

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
                f"{n_processes} after the first {first}; use fewer servers, or fewer ranks of the trainer"
            )
        return {"CUDA_VISIBLE_DEVICES": ",".join(chosen)}


def _last_lines(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-SHOWN_LINES:])
