"""Runs ``archon train`` with several ranks in real processes, with a trainer that does collectives and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from archon_testing.fork_server import ForkedProcess, ForkServer

DEADLINE = 180.0
"""Seconds after which a test gives up; nothing is asserted about how much sooner something happens."""

TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")

PLUGIN = """
import os
import signal

from archon_core.plugins import *

ARCHON_PLUGIN_API = "1.0"

if os.environ.get("RANK") == "1" and "DIE_EARLY" in os.environ:
    os.kill(os.getpid(), signal.SIGKILL)

WHATS = {whats}


@hookimpl
def archon_algorithms():
    return [AlgorithmSpec(name="fake", target="fake_trainer:algorithm", trainer="fake_trainer:Trainer")]


@hookimpl
def archon_models():
    return [ModelSpec(name="tiny", target="json:loads", model_types=("tiny",))]


@hookimpl
def archon_datasets():
    return [DatasetSpec(name="fake", target="json:loads")]


@hookimpl
def archon_rewards():
    return [RewardSpec(name=what, target="json:loads") for what in WHATS]
"""

TRAINER = '''
"""Counts steps together; on the third, does what the reward is called."""

import os
import signal
import sys
import time

from archon_core.errors import TrainingError

algorithm = None


def sleep():
    while True:
        time.sleep(1)


class Trainer:
    def __init__(self, run, algorithm):
        self.run = run

    def fit(self):
        run, what, rank = self.run, self.run.config.reward, self.run.ranks.rank
        (run.folder.path / f"pid-{rank}").write_text(str(os.getpid()))
        print(f"rank {rank} prints this")
        print(f"rank {rank} complains", file=sys.stderr)
        done = run.folder.latest_step() if run.config.trainer.resume else 0
        last = run.config.trainer.max_steps
        run.progress.start(last, completed=done)
        for step in range(done + 1, last + 1):
            seen = run.ranks.gather((rank, step))
            assert seen == [(other, step) for other in range(run.ranks.size)], seen
            run.metrics.log(step, {"ranks": len(seen)})
            run.progress.update(step)
            if step == 3:
                self.act(what, rank)
            stop = run.ranks.any(run.stop.requested)
            save_every = run.config.trainer.save_every
            if (stop or step == last or (save_every and step % save_every == 0)) and run.ranks.is_first:
                with run.folder.writing(step) as folder:
                    (folder / "weights").write_text("w")
            run.ranks.barrier()
            if stop:
                break
            time.sleep(0.02)

    def act(self, what, rank):
        if what == "raise-on-1" and rank == 1:
            raise ValueError("found no gold")
        if what == "raise-on-0" and rank == 0:
            raise ValueError("found no gold")
        if what == "mistake-on-0" and rank == 0:
            raise TrainingError("found no gold; dig elsewhere")
        if what == "mistake-on-all":
            time.sleep(2 * rank)
            raise TrainingError("found no gold; dig elsewhere")
        if what == "hang" and rank == 1:
            sleep()
        death = self.run.folder.path / "death"
        if what == "die-once" and rank == self.run.ranks.size - 1 and not death.exists():
            death.touch()
            os.kill(os.getpid(), signal.SIGKILL)
'''

WHATS = ("fine", "raise-on-1", "raise-on-0", "mistake-on-0", "mistake-on-all", "hang", "die-once")


@dataclass
class Started:
    """A run of ``archon train`` in a separate process.

    Attributes:
        process: the one that was started.
        folder: the run folder.
        output: files of its standard output and error.
    """

    process: subprocess.Popen[bytes] | ForkedProcess
    folder: Path
    output: dict[str, Path] = field(default_factory=dict)

    @property
    def out(self) -> str:
        return self.output["out"].read_text()

    @property
    def err(self) -> str:
        return self.output["err"].read_text()

    @property
    def last_lines(self) -> str:
        """The last two lines of standard error."""
        return "\n".join(self.err.rstrip().splitlines()[-2:])

    def wait(self) -> int:
        return self.process.wait(DEADLINE)

    def pids(self, n_ranks: int) -> list[int]:
        """The processes of all ranks, once all of them train."""
        files = [self.folder / f"pid-{rank}" for rank in range(n_ranks)]
        self.wait_until(lambda: all(file.exists() and file.read_text() for file in files))
        return [int(file.read_text()) for file in files]

    def wait_for_step(self, step: int) -> None:
        self.wait_until(lambda: len(self.rows()) >= step)

    def rows(self) -> list[str]:
        path = self.folder / "metrics.jsonl"
        return path.read_text().splitlines() if path.exists() else []

    def wait_until(self, true: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE
        while not true():
            assert time.monotonic() < end, f"waited in vain\n{self.out}\n{self.err}"
            time.sleep(0.05)

    def leaves_no_process(self) -> bool:
        """Whether every rank that told its process id is gone, at once or soon."""
        pids = [int(file.read_text() or 0) for file in self.folder.glob("pid-*")]
        self.wait_until(lambda: not any(is_running(pid) for pid in pids))
        return True


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie, which the container's first process may leave forever."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


Start = Callable[..., Started]


@pytest.fixture(scope="session")
def fake_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one installed plugin, for ``PYTHONPATH``."""
    site = tmp_path_factory.mktemp("site")
    (site / "fake_plugin.py").write_text(PLUGIN.format(whats=WHATS))
    (site / "fake_trainer.py").write_text(TRAINER)
    info = site / "archon_fake-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: archon-fake\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[archon]\nfake = fake_plugin\n")
    return site


@pytest.fixture
def start(fake_site: Path, tmp_path: Path, forks: ForkServer) -> Iterator[Start]:
    """Start ``archon train`` on a small configuration: ``start("actor.backend=archon:d2", "reward=fine")``.

    Launcher and ranks are forks, except with ``fresh``.
    """
    config = tmp_path / "config.yaml"
    config.write_text(
        textwrap.dedent(
            f"""
            experiment_name: e
            algorithm: fake
            reward: fine
            actor: {{backend: 'archon:d2', model_config: {{model_type: tiny}}}}
            data: {{dataset: fake}}
            trainer: {{max_steps: 5}}
            cluster: {{fileroot: '{tmp_path}/runs'}}
            """
        )
    )
    runs: list[Started] = []

    def start(*overrides: str, launcher: tuple[str, ...] = (), fresh: bool = False, **environment: str) -> Started:
        number = len(runs)
        output = {name: tmp_path / f"{name}-{number}" for name in ("out", "err")}
        path = os.pathsep.join([str(fake_site), os.environ.get("PYTHONPATH", "")])
        inherited: dict[str, Any] = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        inherited |= {"PYTHONPATH": path, "COLUMNS": "200", "ARCHON_DISABLE_PLUGINS": ""}
        with output["out"].open("wb") as out, output["err"].open("wb") as err:
            process = (subprocess.Popen if fresh else forks.popen)(
                [sys.executable, *launcher, "-m", "archon_core.cli", "train", str(config), *overrides],
                stdout=out,
                stderr=err,
                env=inherited | environment,
                cwd=tmp_path,
                start_new_session=True,
            )
        runs.append(Started(process, tmp_path / "runs/e/trial0", output))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            os.killpg(run.process.pid, signal.SIGKILL)
            run.process.wait()
        for file in run.folder.glob("pid-*"):
            if is_running(int(file.read_text())):
                os.kill(int(file.read_text()), signal.SIGKILL)
