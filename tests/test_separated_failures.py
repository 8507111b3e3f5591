"""``archon train`` with a critic on a rank of its own: a killed rank, Ctrl-C, a damaged checkpoint of the critic."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEADLINE = 240.0
CONFIG = """
experiment_name: roles
trial_name: run
algorithm: ppo
reward: arithmetic
rewards: {processes: 0}
tokenizer: {kind: characters}
cluster: {n_gpus_per_node: 2}
actor:
  backend: archon:d1
  model_config:
    model_type: qwen3
    hidden_size: 16
    intermediate_size: 32
    num_hidden_layers: 1
    num_attention_heads: 4
    num_key_value_heads: 2
    head_dim: 8
  kl_ctl: 0.0
  archon: {enable_compile: false}
critic: {scheduling_strategy: {type: separation}, archon: {enable_compile: false}}
rollout: {backend: local}
gconfig: {n_samples: 1, max_new_tokens: 3}
data: {dataset: arithmetic, batch_size: 4, arithmetic: {max_operand: 6}}
trainer: {max_steps: 100000, save_every: 1, keep_last: 2, eval_before_train: false, max_restarts: 1}
"""


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    file = folder / "run.yaml"
    file.write_text(CONFIG)
    return subprocess.Popen(
        [sys.executable, "-m", "archon_core.cli", "train", str(file), f"cluster.fileroot={folder}", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_steps(process: subprocess.Popen[str], run: Path, number: int) -> None:
    """Wait for ``number`` further steps."""
    metrics, end = run / "metrics.jsonl", time.monotonic() + DEADLINE
    before = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    while not metrics.exists() or len(metrics.read_text().splitlines()) < before + number:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "the run does not go on"
        time.sleep(0.01)


def ranks_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """Rank -> process id."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    environments = {int(pid): Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in found}
    return {int(e.split(b"=")[1]): pid for pid, lines in environments.items() for e in lines if e.startswith(b"RANK=")}


def finish(process: subprocess.Popen[str]) -> str:
    printed, _ = process.communicate(timeout=DEADLINE)
    return " ".join(printed.split())


@pytest.mark.slow
@pytest.mark.wide
def test_ranks_of_a_critic_fail_stop_and_resume_with_the_actors(tmp_path: Path) -> None:
    run = tmp_path / "roles/run"
    process = start(tmp_path)
    wait_for_steps(process, run, 3)
    ranks = ranks_of(process)
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[1], signal.SIGKILL)
    wait_for_steps(process, run, 3)
    later = ranks_of(process)
    process.send_signal(signal.SIGINT)
    printed = finish(process)
    assert process.returncode == 130, printed
    assert f"restart 1 of 1: rank 1 of 2 (critic, process {ranks[1]}) was killed first, by SIGKILL" in printed
    assert not [pid for pid in (*ranks.values(), *later.values()) if Path(f"/proc/{pid}").exists()]
    assert "interrupted: the last checkpoint is" in printed

    (critic,) = sorted(run.glob("checkpoints/*/critic/dcp/__0_0.distcp"))[-1:]
    content = bytearray(critic.read_bytes())
    content[len(content) // 2] ^= 255
    critic.write_bytes(content)
    process = start(tmp_path, "--resume")
    printed = finish(process)
    assert process.returncode == 2, printed
    assert "error: " in printed
    assert "critic/dcp" in printed.rpartition("error: ")[2]
    assert "rank 1 of 2 (critic, process" in printed.rpartition("error: ")[2]
