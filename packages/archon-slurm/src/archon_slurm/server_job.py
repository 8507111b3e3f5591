"""The process of an inference server's job: ``python -m archon_slurm.server_job SERVER.json``.

It ends when the job is cancelled, when the server ends, and when the trainer's job has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from archon_core.errors import USER_ERROR, ArchonError, ConfigError
from archon_core.ranks.addresses import own_address
from archon_core.serving.server_agent import ServerAgent
from archon_slurm import client
from archon_slurm.client import SlurmError
from archon_slurm.jobs_file import JobsFile
from archon_slurm.server_jobs import NUMBER


@dataclass(frozen=True)
class ServerJob:
    """What the jobs of servers need to know. The launcher writes it before it submits them.

    Attributes:
        source: the run's YAML file.
        overrides: of the file.
        folder: the run folder.
        environment: variables of every server.
        patience: seconds after which a server whose trainer's job has ended ends, too.
    """

    source: str
    overrides: Sequence[str]
    folder: str
    environment: dict[str, str]
    patience: float

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> ServerJob:
        """Read it."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


NEVER_SUBMITTED_FACTOR = 10
"""A trainer's job that is not submitted after so many times the patience never will be: its launcher was killed between
the submissions of the servers and of the trainer, which take seconds each."""


class TrainerWatch:
    """Notices that the trainer's job has ended. A job that is started again has not.

    Args:
        folder: ``slurm`` in the run folder.
        patience: seconds after the job's end.
    """

    def __init__(self, folder: Path, patience: float) -> None:
        self._jobs, self._patience = JobsFile(folder), patience
        self._trainer = ""
        self._gone_since = 0.0
        self._next_question = 0.0

    def has_ended(self) -> bool:
        """Whether the trainer's job ended some time ago."""
        now = time.monotonic()
        if now >= self._next_question:
            self._next_question = now + self._patience / 3
            with contextlib.suppress(SlurmError, ConfigError):
                self._trainer = self._jobs.read().trainer
                gone = not self._trainer or client.job_state(self._trainer).has_ended
                self._gone_since = (self._gone_since or now) if gone else 0.0
        limit = self._patience * (1 if self._trainer else NEVER_SUBMITTED_FACTOR)
        return self._gone_since != 0.0 and now - self._gone_since >= limit


def main(path: str) -> int:
    """Run the server of this job."""
    job = ServerJob.read(Path(path))
    agent = ServerAgent(
        job.source,
        job.overrides,
        job.folder,
        int(os.environ[NUMBER]),
        host=own_address(os.environ.get("SLURMD_NODENAME", "")),
        environment=job.environment,
        has_run_ended=TrainerWatch(Path(job.folder) / "slurm", job.patience).has_ended,
    )
    return agent.run()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except ArchonError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
