"""A rank that is killed costs time and no number: the run that was started again ends with the weights of one that
was never disturbed.

``ARCHON_RESTART_ROUNDS=20 pytest -n0 tests/test_restarts.py`` tries as many ranks and moments.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from archon_testing.fork_server import ForkedProcess, ForkServer
from archon_testing.worlds import run_world

sys.path.insert(0, str(Path(__file__).parent))

from trained_runs import train

ROUNDS = int(os.environ.get("ARCHON_RESTART_ROUNDS", "1"))
DEADLINE = 300.0

CONFIG = """
experiment_name: restarts
seed: 1
algorithm: sft
tokenizer: {kind: characters}
cluster: {n_gpus_per_node: 2}
actor:
  backend: archon:d2
  dtype: float64
  model_config:
    model_type: qwen3
    hidden_size: 16
    intermediate_size: 32
    num_hidden_layers: 2
    num_attention_heads: 4
    num_key_value_heads: 2
    head_dim: 8
  optimizer: {lr: 0.01, lr_scheduler_type: cosine, warmup_steps_proportion: 0.2}
  archon: {enable_compile: false}
data: {dataset: arithmetic, batch_size: 4, validation_size: 5, arithmetic: {max_operand: 6}}
trainer: {max_steps: 24, save_every: 2, eval_every: 8, max_restarts: 1}
"""


PPO = """
reward: arithmetic
rollout: {backend: local}
gconfig: {n_samples: 1, max_new_tokens: 3}
critic:
  dtype: float64
  ppo_n_minibatches: 2
  warmup_steps: 2
  optimizer: {lr: 0.02, lr_scheduler_type: linear}
  archon: {enable_compile: false}
"""


DISTILLATION = """
rollout: {backend: local}
gconfig: {n_samples: 1, max_new_tokens: 3}
teacher:
  engine_type: train
  backend: archon:t2
  dtype: float64
  model_config:
    model_type: qwen3
    hidden_size: 24
    intermediate_size: 32
    num_hidden_layers: 1
    num_attention_heads: 4
    num_key_value_heads: 2
    head_dim: 8
  warm_start: {steps: 2, lr: 0.02}
  offload: true
  rl_loss_weight: 0.0
  distill_loss_weight: 1.0
  archon: {enable_compile: false}
"""

SECTIONS = {"sft": "", "ppo": PPO, "grpo": DISTILLATION}
"""Algorithm -> its sections of the configuration."""


def configuration(algorithm: str) -> str:
    """Steps of reinforcement learning are longer, so fewer are enough to be killed in between."""
    text = CONFIG if algorithm == "sft" else CONFIG.replace("max_steps: 24", "max_steps: 12")
    return text.replace("algorithm: sft", f"algorithm: {algorithm}{SECTIONS[algorithm]}")


@pytest.fixture
def start(forks: ForkServer, tmp_path: Path) -> Callable[..., tuple[ForkedProcess, Path]]:
    return partial(start_in, forks, tmp_path)


def start_in(forks: ForkServer, folder: Path, *overrides: str, algorithm: str = "sft") -> tuple[ForkedProcess, Path]:
    file = folder / "run.yaml"
    file.write_text(configuration(algorithm))
    given = ["trial_name=run", f"cluster.fileroot={folder}", *overrides]
    with output_of(folder).open("wb") as output:
        process = forks.popen(
            [sys.executable, "-m", "archon_core.cli", "train", str(file), *given],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return process, folder / "restarts" / "run"


def output_of(folder: Path) -> Path:
    return folder / "output.txt"


def finish(process: ForkedProcess, run: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """What the run printed, and the weights that it exported."""
    code, printed = process.wait(DEADLINE), output_of(run.parents[1]).read_text()
    assert code == 0, printed
    return printed, exported(run)


def exported(run: Path) -> dict[str, torch.Tensor]:
    """The weights that a run exported, of the critic too if there is one."""
    return {
        f"{export.name}: {name}": weight
        for export in sorted(run.glob("export*"))
        for name, weight in load_file(export / "model.safetensors").items()
    }


def kill_a_rank(process: ForkedProcess, run: Path, seed: int) -> None:
    """At a moment and on a rank that depend on the seed, long before the run's end."""
    draw = random.Random(seed)
    rows, metrics = draw.randint(1, 8), run / "metrics.jsonl"
    end = time.monotonic() + DEADLINE
    while not metrics.exists() or len(metrics.read_text().splitlines()) < rows:
        assert process.poll() is None, output_of(run.parents[1]).read_text()
        assert time.monotonic() < end, "the run does not begin"
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.02))
    os.kill(draw.choice(ranks_of(process)), signal.SIGKILL)


def ranks_of(launcher: ForkedProcess) -> list[int]:
    """The processes of both ranks, which are children of the launcher's fork server."""
    found = [launcher.pid]
    for _ in range(2):
        parents = ",".join(map(str, found))
        found = subprocess.run(["pgrep", "-P", parents], capture_output=True, text=True).stdout.split()
    ranks = [pid for pid in map(int, found) if os.getpgid(pid) == pid]
    assert len(ranks) == 2
    return sorted(ranks)


def train_undisturbed(folder: Path, algorithm: str) -> dict[str, torch.Tensor]:
    """The weights of a run without a launcher: its ranks are a world, which starts faster."""
    file = folder / "run.yaml"
    file.write_text(configuration(algorithm).replace("cluster: {", f"cluster: {{fileroot: {folder}, "))
    run_world(train, 2, (file, "d2", "run"))
    return exported(folder / "restarts" / "run")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train_undisturbed(tmp_path_factory.mktemp("undisturbed"), "sft")


@pytest.mark.wide
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_run_with_a_killed_rank_ends_with_the_weights_of_one_without(undisturbed, start, seed):
    saving = ("trainer.async_save=true", "trainer.keep_last=1") if seed % 2 else ()
    process, run = start(*saving)
    kill_a_rank(process, run, seed)
    assert_same_weights(process, run, undisturbed)


@pytest.mark.wide
def test_a_run_of_ppo_with_a_killed_rank_ends_with_the_actor_and_the_critic_of_one_without(start, tmp_path):
    (tmp_path / "whole").mkdir()
    undisturbed = train_undisturbed(tmp_path / "whole", "ppo")
    assert {name.partition(":")[0] for name in undisturbed} == {"export", "export_critic"}
    process, run = start("trainer.async_save=true", algorithm="ppo")
    kill_a_rank(process, run, seed=3)
    assert_same_weights(process, run, undisturbed)


@pytest.mark.wide
def test_distillation_with_a_killed_rank_keeps_its_teacher_and_ends_with_the_weights_of_a_run_without(start, tmp_path):
    (tmp_path / "whole").mkdir()
    undisturbed = train_undisturbed(tmp_path / "whole", "grpo")
    process, run = start(algorithm="grpo")
    kill_a_rank(process, run, seed=9)
    assert_same_weights(process, run, undisturbed)


def assert_same_weights(process: ForkedProcess, run: Path, undisturbed: dict[str, torch.Tensor]) -> None:
    printed, weights = finish(process, run)
    assert printed.count("restart 1 of 1: rank") == 1
    assert "was killed first, by SIGKILL" in printed
    assert weights.keys() == undisturbed.keys()
    assert [name for name in weights if not torch.equal(weights[name], undisturbed[name])] == []
