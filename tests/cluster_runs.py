"""Starts runs of ``archon train`` whose trainer counts, for tests of launchers on clusters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

DEADLINE = 300.0
"""Seconds after which a test gives up; nothing is asserted about how much sooner something happens."""

PLUGIN = """
from archon_core.plugins import *

ARCHON_PLUGIN_API = "1.0"
WHATS = ("fine", "exit-7-on-last", "wait")


@hookimpl
def archon_algorithms():
    return [AlgorithmSpec(name="counting", target="counting_trainer:algorithm", trainer="counting_trainer:Trainer")]


@hookimpl
def archon_rewards():
    return [RewardSpec(name=what, target="json:loads") for what in WHATS]
"""

TRAINER = '''
"""Counts steps together, which takes no model; what happens on the third step is called like the reward."""

import os
import time

algorithm = None


class Trainer:
    def __init__(self, run, algorithm):
        self.run = run

    def fit(self):
        run = self.run
        what, rank, last = run.config.reward, run.ranks.rank, run.config.trainer.max_steps
        done = run.folder.latest_step() if run.config.trainer.resume else 0
        run.progress.start(last, completed=done)
        for step in range(done + 1, last + 1):
            assert run.ranks.gather((rank, step)) == [(other, step) for other in range(run.ranks.size)]
            run.metrics.log(step, {"ranks": run.ranks.size})
            run.progress.update(step)
            if step == 3 and what == "exit-7-on-last" and rank == run.ranks.size - 1:
                os._exit(7)
            if what == "wait" and step > 3:
                time.sleep(0.2)
            stop = run.ranks.any(run.stop.requested)
            if run.ranks.is_first:
                with run.folder.writing(step) as folder:
                    (folder / "weights").write_text("w")
            run.ranks.barrier()
            if stop:
                break
'''

CONFIG = {
    "experiment_name": "e",
    "cluster": {"n_nodes": 2, "n_gpus_per_node": 0},
    "tokenizer": {"kind": "characters"},
    "actor": {
        "backend": "archon:d4",
        "init_from_scratch": True,
        "dtype": "float64",
        "model_config": {
            "model_type": "qwen3",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "vocab_size": 32,
            "max_position_embeddings": 64,
        },
    },
    "algorithm": "counting",
    "reward": "fine",
    "data": {"path": "data.jsonl", "batch_size": 8},
    "trainer": {"max_steps": 6},
}


SFT = ("algorithm=sft", "trainer.max_steps=40", "trainer.save_every=10")
"""Options of a run with a model instead of counting."""

PPO = (
    "algorithm=ppo",
    "reward=arithmetic",
    "rewards.processes=0",
    "data.dataset=arithmetic",
    "data.path=null",
    "data.batch_size=4",
    "actor.kl_ctl=0.0",
    "actor.archon.enable_compile=false",
    "critic={dtype: float64, archon: {enable_compile: false}}",
    "rollout.backend=local",
    "gconfig.n_samples=2",
    "gconfig.max_new_tokens=4",
    "trainer.max_steps=2",
    "trainer.eval_before_train=false",
)
"""Options of a run with a critic, which samples in its own processes."""

CRITIC_APART = ("critic.scheduling_strategy.type=separation", "critic.backend=archon:d1", "actor.backend=archon:d2")
"""The critic on its own rank, the third one."""

COMPARED = ("loss", "reward", "critic/loss", "critic/explained_variance")


@dataclass
class Started:
    """A run of ``archon train`` in progress.

    Attributes:
        process: of the launcher.
        folder: the run folder.
        output: file of both of its streams.
    """

    process: subprocess.Popen[bytes]
    folder: Path
    output: Path

    @property
    def text(self) -> str:
        """What it has printed, on one line."""
        return " ".join(self.output.read_text(encoding="utf-8", errors="replace").split())

    def wait(self) -> int:
        """Its exit code."""
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running; it printed:\n{self.output.read_text()}") from None

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for something; the run must not end before it."""
        deadline = time.monotonic() + DEADLINE
        while not holds():
            assert self.process.poll() is None, f"ended before {what}:\n{self.output.read_text()}"
            assert time.monotonic() < deadline, f"no {what}:\n{self.output.read_text()}"
            time.sleep(0.1)

    def until_step(self, step: int) -> None:
        """Wait for the checkpoint of a step, or of a later one."""
        folder = self.folder / "checkpoints"
        self.until(lambda: max([0, *(int(p.name[5:]) for p in folder.glob("step-*"))]) >= step, f"step {step}")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of the run's metrics."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@dataclass
class Runs:
    """Starts runs in a folder, which all machines share.

    Attributes:
        folder: the folder.
        environment: of the launchers.
        options: sections of the configuration beside ``CONFIG``.
        kind: class of the started runs.
        started: all of them.
    """

    folder: Path
    environment: dict[str, str]
    options: Mapping[str, Any]
    kind: type[Started] = Started
    started: list[Any] = field(default_factory=list)

    def start(self, name: str, *overrides: str) -> Any:
        """Start ``archon train`` with the trial name ``name``."""
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps({**CONFIG, **self.options, "trial_name": name}), encoding="utf-8")
        output = self.folder / f"{name}.out"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "archon_core.cli", "train", str(path), *overrides],
                cwd=self.folder,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(self.kind(process, self.folder / "runs" / "e" / name, output))
        return self.started[-1]

    def kill(self) -> None:
        """Kill the launchers that still run."""
        for run in self.started:
            if run.process.poll() is None:
                run.process.kill()
                run.process.wait()


def runs_in(folder: Path, options: Mapping[str, Any], kind: type[Started] = Started) -> Runs:
    """``Runs`` in an empty folder, with data and the plugin that counts.

    Args:
        folder: the folder.
        options: sections of the configuration.
        kind: class of the started runs.
    """
    lines = (json.dumps({"question": f"{n}+1=", "answer": str(n + 1)}) for n in range(64))
    (folder / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    plugins = folder / "plugins"
    info = plugins / "counting-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: counting\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[archon]\ncounting = counting_plugin\n", encoding="utf-8")
    (plugins / "counting_plugin.py").write_text(PLUGIN, encoding="utf-8")
    (plugins / "counting_trainer.py").write_text(TRAINER, encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(plugins), os.environ.get("PYTHONPATH", "")]))
    return Runs(folder, {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, options, kind)


def assert_same(run: Started, alone: Started) -> None:
    """The same losses and weights, up to rounding in float64."""
    assert [row["step"] for row in run.metrics] == [row["step"] for row in alone.metrics]
    for row, other in zip(run.metrics, alone.metrics, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-9)
    weights, others = (load_file(one.folder / "export" / "model.safetensors") for one in (run, alone))
    for name, value in others.items():
        assert (weights[name] - value).abs().max() <= 1e-9 * value.abs().max(), name


def assert_same_steps(run: Started, alone: Started) -> None:
    """The same metrics of two runs of ``PPO``, up to rounding in float64."""
    ours, theirs = (
        [{name: row[name] for name in COMPARED} for row in one.metrics if "loss" in row] for one in (run, alone)
    )
    assert len(ours) == 2
    assert ours == [pytest.approx(row, rel=1e-9, abs=1e-9) for row in theirs]


def alive(pid: int) -> bool:
    """Whether a process exists, and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for something."""
    deadline = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
