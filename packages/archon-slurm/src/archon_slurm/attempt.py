"""The folder of one attempt of a job, by which its machines and the launcher tell each other how it goes.

SLURM reports one exit code for a job, not which process failed first, and calls a job RUNNING for minutes after a
machine is gone. So every machine writes its own file, and the first one that learns that the attempt is over writes
``end.json``.

Files are replaced by rename, so readers never see half of one. Clocks of different machines are never compared: a beat
is a counter, and a reader measures by its own clock how long it has not changed.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from archon_core.ranks.error_file import read_error
from archon_core.ranks.first_failure import RankExit
from archon_core.ranks.local_ranks import RankStatus
from archon_slurm.shared_files import read_json

EndKind = Literal["failure", "stop", "kill", "lost", "superseded"]


@dataclass(frozen=True)
class End:
    """Why an attempt is over.

    Attributes:
        kind: ``failure`` of a rank, ``stop`` after a signal (ranks finish their step), ``kill``, a machine that is
            ``lost``, or ``superseded`` by a later attempt.
        node: number of the machine concerned; -1 for none.
        signal: of a stop.
        reason: in words.
    """

    kind: EndKind
    node: int = -1
    signal: int = 0
    reason: str = ""


@dataclass(frozen=True)
class NodeStatus:
    """What one machine reports.

    Attributes:
        node: its number in the job.
        host: its name.
        beat: rises as long as the machine lives.
        ended: whether its processes have ended.
        ranks: its ranks; empty before they start.
    """

    node: int
    host: str
    beat: int = 0
    ended: bool = False
    ranks: Sequence[RankStatus] = field(default=())


class Attempt:
    """The files in an attempt's folder.

    Args:
        folder: the folder, which may not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log(self, rank: int) -> Path:
        """The output of a rank."""
        return self.folder / f"rank-{rank}.log"

    def error(self, rank: int) -> Path:
        """The error of a rank, which it writes itself."""
        return self.folder / f"rank-{rank}.error.json"

    def write_status(self, status: NodeStatus) -> None:
        """Replace the file of a machine."""
        self._write(f"node-{status.node}.json", asdict(status))

    def status(self, node: int) -> NodeStatus | None:
        """What a machine reports; ``None`` if it has not reported yet."""
        data = self._read(f"node-{node}.json")
        if data is None:
            return None
        ranks = tuple(RankStatus(**rank) for rank in data.pop("ranks"))
        return NodeStatus(**data, ranks=ranks)

    def write_end(self, end: End) -> None:
        """Say why the attempt is over, unless someone has. A ``kill`` replaces a ``stop``."""
        found = self.end()
        if found is None or (found.kind == "stop" and end.kind != "stop"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write("end.json", asdict(end))

    def end(self) -> End | None:
        """Why the attempt is over; ``None`` while it is not."""
        data = self._read("end.json")
        return None if data is None else End(**data)

    def write_rendezvous(self, address: str, port: int) -> None:
        """Say where the ranks meet."""
        self._write("rendezvous.json", {"address": address, "port": port})

    def rendezvous(self) -> tuple[str, int] | None:
        """Where the ranks meet; ``None`` before the first machine has said it."""
        data = self._read("rendezvous.json")
        return None if data is None else (data["address"], data["port"])

    def exits(
        self,
        n_nodes: int,
        ranks_by_node: Sequence[Sequence[int]],
        *,
        lost: Mapping[int, str],
        script_output: Path | None = None,
    ) -> list[RankExit]:
        """How the ranks ended.

        Args:
            n_nodes: number of machines.
            ranks_by_node: ranks on each machine.
            lost: number of a machine -> why its ranks are lost unless it says otherwise.
            script_output: output of the job's script, which says why ranks never started; ``None`` if unknown.
        """
        exits = []
        for node in range(n_nodes):
            status = self.status(node)
            known = {rank.rank: rank for rank in status.ranks} if status is not None else {}
            for number in ranks_by_node[node]:
                rank = known.get(number)
                if rank is not None and (rank.killed or (rank.code is None and status is not None and status.ended)):
                    continue
                host = status.host if status is not None else ""
                error = read_error(self.error(number))
                cause = lost.get(node, "")
                if rank is not None and rank.code is not None:
                    exits.append(RankExit(number, rank.pid, rank.code, rank.time, error, self.log(number), host))
                elif cause:
                    pid, log = (rank.pid, self.log(number)) if rank is not None else (0, script_output)
                    exits.append(RankExit(number, pid, 1, float("inf"), error, log, host, cause))
        return exits

    def _write(self, name: str, data: Mapping[str, Any]) -> None:
        temporary = self.folder / f".{name}.{os.getpid()}.{os.uname().nodename}"
        temporary.write_text(json.dumps(data), encoding="utf-8")
        temporary.replace(self.folder / name)

    def _read(self, name: str) -> dict[str, Any] | None:
        with contextlib.suppress(OSError, ValueError):
            return read_json(self.folder / name)
        return None


@dataclass(frozen=True)
class TrainerJob:
    """What the machines of the trainer's job need to know. The launcher writes it before it submits the job.

    Attributes:
        command: arguments of Python for a rank.
        ranks_by_node: the ranks on each machine, by its number in the job.
        logs: parent of the attempts' folders; the job's id is added.
        environment: variables of every rank.
        node_timeout: seconds after which a machine that does not report counts as lost.
    """

    command: Sequence[str]
    ranks_by_node: Sequence[Sequence[int]]
    logs: str
    environment: Mapping[str, str]
    node_timeout: float = 60.0

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> TrainerJob:
        """Read it."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def attempt_folder(logs: Path, job: str, restarts: int) -> Path:
    """The folder of an attempt of a job.

    >>> str(attempt_folder(Path("runs/a/b/logs"), "12", 1))
    'runs/a/b/logs/job-12/attempt-1'
    """
    return logs / f"job-{job}" / f"attempt-{restarts}"
