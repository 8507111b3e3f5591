"""Rewards of a user's own module in real runs: the page's commands, several ranks, and processes that must not stay."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from archon_core.cli.main import main
from archon_testing.fork_server import ForkedProcess

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/rewards.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## Rewards of your own\n")[2].partition("\n## ")[0]

RUN = """
experiment_name: own
trial_name: reward
algorithm: grpo
cluster: {n_gpus_per_node: 2}
tokenizer: {kind: characters}
data: {dataset: arithmetic, batch_size: 4, validation_size: 4, arithmetic: {max_operand: 4}}
actor:
  backend: archon:d2
  dtype: float32
  model_config:
    model_type: qwen3
    hidden_size: 16
    intermediate_size: 32
    num_hidden_layers: 1
    num_attention_heads: 2
    num_key_value_heads: 1
    head_dim: 8
  kl_ctl: 0.0
  ppo_n_minibatches: 1
  archon: {enable_compile: false}
rollout: {backend: local}
gconfig: {n_samples: 2, max_new_tokens: 3}
trainer: {max_steps: 2}
"""

HANGS = """
import os, re
from pathlib import Path

def short(prompt, completion, record):
    Path(f"reward-{os.getpid()}").touch()
    re.match(r"(a+)+$", "a" * 64 + "b")  # compiled code that hangs, and keeps Python's threads from running
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with the page's module and a run."""
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", SECTION, re.DOTALL)[1]
    (tmp_path / "my_rewards.py").write_text(code)
    (tmp_path / "run.yaml").write_text(RUN)
    return tmp_path


def shown_commands() -> list[list[str]]:
    block = re.search(r"```bash\n(.*?)```", SECTION, re.DOTALL)[1]
    return [line.split()[1:] for line in block.splitlines() if line.startswith("archon ")]


def start(arguments: list[str], folder: Path, popen=subprocess.Popen) -> subprocess.Popen[bytes] | ForkedProcess:
    """Its output goes to ``output.txt`` in the folder."""
    command = [sys.executable, "-c", "from archon_core.cli.main import main; main()", *arguments]
    with (folder / "output.txt").open("wb") as output:
        return popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)


def test_the_pages_dry_run_accepts_its_function(folder):
    dry, _ = shown_commands()
    assert dry[-1] == "--dry-run"
    with pytest.raises(SystemExit) as ended:
        main(dry)
    assert not ended.value.code
    assert not (folder / "runs").exists()


@pytest.mark.wide
def test_the_pages_run_trains_with_its_function_on_two_ranks(forks, folder):
    _, command = shown_commands()
    assert start(command, folder, forks.popen).wait(300) == 0, (folder / "output.txt").read_text()
    rows = [json.loads(line) for line in (folder / "runs/own/reward/metrics.jsonl").read_text("utf-8").splitlines()]
    rewards = [row["reward"] for row in rows if "reward" in row]
    assert len(rewards) == 2
    assert all(-0.03 <= reward <= 0.99 for reward in rewards)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.wide
@pytest.mark.parametrize("signals", [(signal.SIGKILL,), (signal.SIGINT, signal.SIGINT)], ids=["killed", "Ctrl-C twice"])
def test_no_reward_process_outlives_its_run(forks, folder, signals):
    (folder / "my_rewards.py").write_text(HANGS)
    options = ["actor.backend=archon:d2", "rewards.timeout_seconds=1000", "data.validation_size=0"]
    # Forks would see the end of their fork server, too.
    popen = subprocess.Popen if signal.SIGKILL in signals else forks.popen
    run = start(["train", "run.yaml", "reward=my_rewards:short", *options], folder, popen)
    try:
        wait_until(lambda: len(list(folder.glob("reward-*"))) == 4 or run.poll() is not None, "rewards are called")
        pids = [int(file.name.partition("-")[2]) for file in folder.glob("reward-*")]
        assert len(pids) == 4, (folder / "output.txt").read_text()  # two on each rank
        assert all(map(is_running, pids))
        for number in signals:
            run.send_signal(number)
            time.sleep(1)  # repetitions of a signal within half a second count as one
        run.wait(timeout=120)
    finally:
        run.kill()
        run.wait()
    wait_until(lambda: not any(map(is_running, pids)), "all reward processes have ended")
    assert os.getpid() not in pids
