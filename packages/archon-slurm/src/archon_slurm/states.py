"""What SLURM says about jobs: parses ``squeue`` and ``scontrol``. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from archon_core.ranks.host_list import expand_hosts

ENDED = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "SPECIAL_EXIT",
        "TIMEOUT",
    }
)
"""States in which a job does not run and will not run by itself. Others, such as COMPLETING or REQUEUED, pass."""

UNKNOWN = "UNKNOWN"
"""The state of a job that SLURM does not list any more, or never did."""


@dataclass(frozen=True)
class JobState:
    """One job, as SLURM reports it.

    Attributes:
        id: its number.
        state: SLURM's name, such as ``RUNNING``.
        reason: why it waits, or why it ended; empty for no reason.
        restarts: how often it was started again.
        hosts: its machines, in order of their node numbers; empty while it waits.
        code: exit code of its script.
        signal: signal that ended its script; 0 for none.
        output: file for the output of its script.
    """

    id: str
    state: str
    reason: str = ""
    restarts: int = 0
    hosts: tuple[str, ...] = ()
    code: int = 0
    signal: int = 0
    output: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether it runs no more."""
        return self.state in ENDED or self.state == UNKNOWN

    def belongs_to(self, run: Path) -> bool:
        """Whether its output goes to the folder of a run, whatever the run's ``jobs.json`` says: someone else may have
        written that, or copied the folder."""
        if not self.output:
            return False
        found, logs = str(Path(self.output).parent.resolve()), str((run / "logs").resolve())
        # scontrol replaces %u by the user's name even where sbatch has read %%u, and shows a bare percent sign twice.
        first, *others = logs.split("%")
        pattern = re.escape(first) + "".join(f".*?{re.escape(piece[1:])}" for piece in others)
        return re.fullmatch(pattern, found) is not None

    @property
    def waits(self) -> bool:
        """Whether it waits for machines."""
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "CONFIGURING")

    def __str__(self) -> str:
        detail = f" ({self.reason})" if self.reason else ""
        return f"job {self.id} is {self.state}{detail}"


_FIELD = re.compile(r"(?:^|\s)([A-Z][A-Za-z:/_]*)=")
"""The beginning of a field. Values are not quoted, and paths may have spaces."""


def _fields(line: str) -> dict[str, str]:
    """The fields of a line. Of equal ones the first counts: paths and comments, which are the user's, come late."""
    _, *pieces = _FIELD.split(line)
    fields: dict[str, str] = {}
    for name, value in zip(pieces[::2], pieces[1::2], strict=True):
        fields.setdefault(name, value.strip())
    return fields


def parse_job(text: str) -> JobState:
    """One line of ``scontrol --oneliner show job``.

    Raises:
        ValueError: it is not the line of a job.
    """
    fields = _fields(text)
    if not {"JobId", "JobState"} <= fields.keys():
        raise ValueError(f"found no job in {text.strip()[:200]!r}")
    code, _, number = fields.get("ExitCode", "0:0").partition(":")
    hosts = fields.get("NodeList", "")
    return JobState(
        fields["JobId"],
        fields["JobState"],
        reason=_given(fields.get("Reason", "")),
        restarts=int(fields.get("Restarts", "0")),
        hosts=tuple(expand_hosts(hosts)) if _given(hosts) else (),
        code=int(code),
        signal=int(number or 0),
        output=fields.get("StdOut", ""),
    )


def _given(text: str) -> str:
    return "" if text in ("None", "(null)", "N/A") else text
