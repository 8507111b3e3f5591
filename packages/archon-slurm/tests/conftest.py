"""A SLURM that does nothing: programs that record their calls and answer from a file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from archon_core.contracts.launching import Launch, Part, Process, ProcessPlan
from archon_core.contracts.scheduling import SchedulingSpec
from archon_core.layout import parse_layout
from archon_core.ranks.local_ranks import RankStatus
from archon_slurm.attempt import Attempt, NodeStatus, attempt_folder
from archon_slurm.launcher import SlurmLauncher
from archon_slurm.options import SlurmOptions

PROGRAM = """#!/bin/bash
printf '%s\\n' "{name} $*" >> {folder}/calls
{body}
"""

BODIES = {
    "sbatch": (
        "cat > {folder}/script; [ -e {folder}/refusal ] && {{ cat {folder}/refusal >&2; exit 1; }}\n"
        "id=$(( $(cat {folder}/last 2>/dev/null || echo 0) + 1 )); echo $id > {folder}/last; echo $id"
    ),
    "scontrol": (
        'if [ "$1" = requeue ]; then [ ! -e {folder}/no-requeue ] || {{ echo disabled >&2; exit 1; }}; exit 0; fi\n'
        'if [ "$2" = show ]; then cat {folder}/job-$4 2>/dev/null || {{ echo "Invalid job id" >&2; exit 1; }}; fi'
    ),
    "scancel": "exit 0",
    "srun": "exit 0",
}


@dataclass
class FakeSlurm:
    """The folder of the programs."""

    folder: Path

    @property
    def calls(self) -> list[str]:
        """Commands that were called, except questions."""
        path = self.folder / "calls"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [line for line in lines if " show job " not in line]

    @property
    def script(self) -> str:
        """The script of the last job."""
        return (self.folder / "script").read_text(encoding="utf-8")

    def set_job(self, id: str, **fields: Any) -> None:
        """What ``scontrol show job`` says."""
        found = {"JobId": id, "JobState": "RUNNING", "Reason": "None", "Restarts": 0, "ExitCode": "0:0"}
        line = " ".join(f"{name}={value}" for name, value in {**found, "NodeList": "n[1-2]", **fields}.items())
        (self.folder / f"job-{id}").write_text(line, encoding="utf-8")

    def refuse(self, message: str) -> None:
        """Let ``sbatch`` refuse every job."""
        (self.folder / "refusal").write_text(message, encoding="utf-8")

    def refuse_requeue(self) -> None:
        """Let ``scontrol requeue`` fail."""
        (self.folder / "no-requeue").touch()


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """SLURM's programs, in front of others on PATH."""
    folder = tmp_path_factory.mktemp("slurm")
    for name, body in BODIES.items():
        program = folder / name
        program.write_text(PROGRAM.format(name=name, folder=folder, body=body.format(folder=folder)), encoding="utf-8")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return FakeSlurm(folder)


@pytest.fixture
def read_json() -> Any:
    """Reads a JSON file."""
    return lambda path: json.loads(Path(path).read_text(encoding="utf-8"))


@dataclass
class Stop:
    number: int | None = None
    insisted: bool = False


@dataclass
class Run:
    """A launch of two ranks on each of two machines."""

    folder: Path
    stop: Stop = field(default_factory=Stop)
    notes: list[str] = field(default_factory=list)
    options: SlurmOptions = field(default_factory=lambda: SlurmOptions(poll_seconds=0.05, node_timeout=5))

    def launcher(self, spec: SchedulingSpec | None = None, *more: Part, source: Path | None = None) -> SlurmLauncher:
        if source is None:
            source = self.folder.parent / "run.yaml"
            source.write_text("seed: 1\n")
        processes = tuple(Process(rank, rank // 2, (rank % 2,)) for rank in range(4))
        part = Part("trainer", ("actor",), parse_layout("archon:d4"), processes, scheduling=spec or SchedulingSpec())
        config = SimpleNamespace(experiment_name="e", trial_name="t", slurm=self.options)
        plan = ProcessPlan((part, *more), 2, 2)
        launch = Launch(config, plan, source, ["a.b=1"], self.folder, self.stop, self.notes.append)
        return SlurmLauncher(launch)

    def attempt(self, restarts: int = 0, job: str = "1") -> Attempt:
        found = Attempt(attempt_folder(self.folder / "logs", job, restarts))
        found.folder.mkdir(parents=True, exist_ok=True)
        return found

    def report(self, attempt: Attempt, *codes: int, ended: tuple[bool, bool] = (True, True)) -> None:
        for node in (0, 1):
            ranks = [RankStatus(rank, 100 + rank, codes[rank], 1.0) for rank in (2 * node, 2 * node + 1)]
            attempt.write_status(NodeStatus(node, f"n{node + 1}", 1, ended[node], ranks))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    folder = tmp_path / "runs" / "e" / "t"
    folder.mkdir(parents=True)
    return Run(folder)
