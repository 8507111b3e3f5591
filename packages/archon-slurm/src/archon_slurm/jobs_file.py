"""The file ``slurm/jobs.json`` of a run: ids of its jobs. The launcher and ``archon slurm`` change it under a lock."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from archon_core.errors import ConfigError
from archon_slurm.shared_files import read_json


@dataclass(frozen=True)
class Jobs:
    """The jobs of a run.

    Attributes:
        trainer: id of the trainer's job; empty before it is submitted.
        servers: number of a server -> id of its job.
    """

    trainer: str = ""
    servers: Mapping[int, str] = field(default_factory=dict)

    @property
    def all(self) -> list[str]:
        """All ids."""
        return [*([self.trainer] if self.trainer else []), *self.servers.values()]


class JobsFile:
    """The file.

    Args:
        folder: ``slurm`` in the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "jobs.json"

    def exists(self) -> bool:
        """Whether the run has submitted jobs."""
        return self._path.exists()

    def read(self) -> Jobs:
        """The jobs; none without the file.

        Raises:
            ConfigError: it is damaged, or cannot be read.
        """
        try:
            data = read_json(self._path)
            if data is None:
                return Jobs()
            return Jobs(str(data["trainer"]), {int(number): str(id) for number, id in data["servers"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{self._path}: cannot read it ({error!r}); if `squeue --me` shows no job of the run, delete the file"
            ) from error

    def set_trainer(self, id: str) -> None:
        """Record the trainer's job."""
        with self.changing() as jobs:
            self._write(replace(jobs, trainer=id))

    def add_server(self, number: int, id: str) -> None:
        """Record a server's job."""
        with self.changing() as jobs:
            self._write(replace(jobs, servers={**jobs.servers, number: id}))

    def remove_server(self, number: int) -> None:
        """Forget a server's job."""
        with self.changing() as jobs:
            self._write(replace(jobs, servers={n: id for n, id in jobs.servers.items() if n != number}))

    def clear(self) -> None:
        """Forget the jobs of an earlier start of the run."""
        with self.changing():
            self._write(Jobs())

    @contextmanager
    def changing(self) -> Iterator[Jobs]:
        """The jobs, while no other process changes them."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("a", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self.read()

    def _write(self, jobs: Jobs) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(asdict(jobs)), encoding="utf-8")
        temporary.replace(self._path)
