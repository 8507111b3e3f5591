"""The jobs of a run's inference servers: one per server, all with the same script ``slurm/server.sh``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from archon_core.errors import ConfigError
from archon_slurm import client
from archon_slurm.client import SlurmError
from archon_slurm.jobs_file import JobsFile

NUMBER = "ARCHON_SERVER_NUMBER"
"""Environment variable of a job: the number of its server."""

SCRIPT = "server.sh"


class ServerJobs:
    """Submits and cancels servers while a run runs.

    Args:
        folder: ``slurm`` in the run folder.
        note: prints a line for the user.
    """

    def __init__(self, folder: Path, note: Callable[[str], None]) -> None:
        self._script = folder / SCRIPT
        self._file = JobsFile(folder)
        self._note = note

    def submit(self, count: int) -> list[str]:
        """Submit more servers, with the lowest free numbers; returns the ids of their jobs.

        Raises:
            ConfigError: the run has no servers, or SLURM refuses a job.
        """
        if not self._script.exists():
            raise ConfigError(
                f"{self._script.parent}: found no {SCRIPT}; only a run with scheduler.type=slurm whose rollout.backend "
                "has servers, such as served:d2, can have more of them"
            )
        script = self._script.read_text(encoding="utf-8")
        ids = []
        for _ in range(count):
            taken = self._file.read().servers
            number = next(n for n in range(len(taken) + 1) if n not in taken)
            id = client.submit(script, f"--export=ALL,{NUMBER}={number}")
            self._file.add_server(number, id)
            self._note(f"job {id}: server {number}")
            ids.append(id)
        return ids

    def scale(self, count: int) -> None:
        """Have ``count`` servers. The ones with the highest numbers end; they finish their requests.

        Raises:
            ConfigError: as ``submit``.
        """
        self.forget_ended()
        servers = self._file.read().servers
        for number in sorted(servers)[count:]:
            client.cancel([servers[number]])
            self._file.remove_server(number)
            self._note(f"job {servers[number]}: server {number} ends")
        self.submit(max(0, count - len(servers)))

    def forget_ended(self) -> None:
        """Report servers whose jobs have ended by themselves, and forget them."""
        for number, id in self._file.read().servers.items():
            try:
                state = client.job_state(id)
            except SlurmError:
                return
            if state.has_ended and self._file.read().servers.get(number) == id:
                self._file.remove_server(number)
                self._note(f"server {number} is gone: {state}; `archon slurm scale` adds servers")

    def cancel(self) -> None:
        """Cancel all servers."""
        if ids := [*self._file.read().servers.values()]:
            client.cancel(ids)
