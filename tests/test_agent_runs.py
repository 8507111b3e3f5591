"""Runs on agents with real servers and the real OpenAI client, and the code of docs/agents.md."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from archon_testing.fork_server import ForkedProcess, ForkServer
from archon_train.run.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/agents.md").read_text(encoding="utf-8"), re.M | re.S)
METRICS = "runs/agent/grpo/metrics.jsonl"
SHORT = (
    "warm_start.steps=2",
    "trainer.max_steps=2",
    "trainer.eval_before_train=false",
    "trainer.eval_size=2",
    "actor.model_config.num_hidden_layers=1",
    "data.batch_size=2",
    "gconfig.n_samples=2",
    "actor.ppo_n_minibatches=1",
)


@pytest.fixture
def start(forks: ForkServer, tmp_path: Path) -> Callable[..., ForkedProcess]:
    return partial(start_in, forks, tmp_path)


def start_in(forks: ForkServer, folder: Path, *overrides: str) -> ForkedProcess:
    command = [sys.executable, "-c", "from archon_core.cli.main import main; main()"]
    command += ["train", str(ROOT / "examples/grpo_agent.yaml"), f"cluster.fileroot={folder}/runs", *SHORT, *overrides]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with (folder / "output.txt").open("wb") as output:
        return forks.popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)


def steps(folder: Path) -> list[dict[str, float]]:
    return [row for row in read_metrics(folder / METRICS) if "dropped/workflow_failed" in row]


def test_the_page_shows_the_agent_of_the_example():
    assert (ROOT / "examples/arithmetic_agent.py").read_text(encoding="utf-8").endswith(f"\n\n{BLOCKS[0]}")


@pytest.mark.wide
def test_the_example_trains_on_the_sessions_of_its_agent_in_processes(start, tmp_path):
    pytest.importorskip("openai", reason="the optional dependency openai is not installed")
    evaluated = ("trainer.eval_before_train=true", "trainer.eval_every=1")
    run = start("rollout.agent.mode=subproc", "rollout.agent.subproc_max_workers=2", *evaluated)
    assert run.wait(timeout=300) == 0, (tmp_path / "output.txt").read_text()
    check_sessions(tmp_path, evaluated=[0, 1, 2], rewards=(0, 0.25, 0.5, 0.75, 1))


def check_sessions(folder: Path, *, evaluated: list[int], rewards: tuple[float, ...]) -> None:
    """Two steps of sessions with one or two answers each.

    Args:
        folder: of the run.
        evaluated: the steps after which it is.
        rewards: possible means of the held-out sessions; second answers are worth half.
    """
    rows = steps(folder)
    assert [row["dropped/workflow_failed"] for row in rows] == [0, 0]
    assert all(row["updates"] == 1 and row["staleness_max"] == 0 for row in rows)
    # After two steps of warm start nearly all answers are wrong: most sessions have two answers of several tokens.
    assert all(row["completion_tokens"] > 2 for row in rows)
    assert all(1 <= row["workflow/session_calls"] <= 2 for row in rows)
    assert all(row["workflow/session_reward"] == row["reward"] for row in rows), "one trajectory per session"
    evaluations = [row for row in read_metrics(folder / METRICS) if "eval/reward" in row]
    assert [row["step"] for row in evaluations] == evaluated
    for row in evaluations:
        assert row["eval/reward"] in rewards
        assert 1 <= row["eval/session_calls"] <= 2
        assert "eval/reward_failed" not in row


WAITING = """
import asyncio
from pathlib import Path

from examples.arithmetic_agent import SecondChance


class Waits:
    def __init__(self):
        self.agent = SecondChance()

    async def run(self, data, **extra_kwargs):
        with open("sessions.txt", "a") as file:
            print(data["question"], file=file)
        while not Path("go").exists():
            await asyncio.sleep(0.05)
        return await self.agent.run(data, **extra_kwargs)
"""


@pytest.mark.wide
def test_a_collector_that_is_killed_in_an_evaluation_is_replaced_and_the_evaluation_repeated(start, tmp_path):
    """Agents run in the collector itself."""
    pytest.importorskip("openai", reason="the optional dependency openai is not installed")
    (tmp_path / "waiting_agent.py").write_text(WAITING, encoding="utf-8")
    evaluated = ("trainer.eval_before_train=true", "trainer.eval_size=4", "rollout.max_concurrent_rollouts=4")
    run = start("rollout.agent.agent_cls_path=waiting_agent:Waits", "rollout.agent.mode=inline", *evaluated)
    sessions = tmp_path / "sessions.txt"
    # Two training groups of two sessions have started, and two of the four held-out groups.
    while not sessions.exists() or len(sessions.read_text().split()) < 6:
        assert run.poll() is None, (tmp_path / "output.txt").read_text()
        time.sleep(0.1)
    log = (tmp_path / "runs/agent/grpo/collector.log").read_text(encoding="utf-8")
    [collector] = map(int, re.findall(r"Started server process \[(\d+)\]", log))
    os.kill(collector, signal.SIGKILL)
    (tmp_path / "go").touch()
    assert run.wait(timeout=300) == 0, (tmp_path / "output.txt").read_text()
    assert "The collector was lost" in (tmp_path / "output.txt").read_text()
    check_sessions(tmp_path, evaluated=[0, 2], rewards=tuple(number / 8 for number in range(9)))
    questions = sessions.read_text().split()
    assert Counter(questions[:6]) <= Counter(questions[6:14]), "the next collector starts with the same records"


@pytest.mark.wide
def test_agents_from_outside_drive_a_run_with_the_code_of_the_page(start, tmp_path, monkeypatch):
    pytest.importorskip("openai", reason="the optional dependency openai is not installed")
    run = start("rollout.agent.mode=online", "rollout.agent.agent_cls_path=")
    monkeypatch.chdir(tmp_path)
    address = tmp_path / "runs/agent/grpo/agents.json"
    while not address.exists():
        assert run.poll() is None, (tmp_path / "output.txt").read_text()
        time.sleep(0.1)
    code = next(block for block in BLOCKS if "start_session" in block)
    n_sessions = 0
    while n_sessions < 8:  # two steps of two prompts with two samples
        task = f"task {n_sessions // 2}"
        try:
            exec(compile(code.replace("task 7", task), "docs/agents.md", "exec"), {})
        except KeyError:  # 429: the next step's samples do not wait yet
            assert run.poll() is None, (tmp_path / "output.txt").read_text()
            time.sleep(0.1)
        else:
            n_sessions += 1
    assert run.wait(timeout=300) == 0, (tmp_path / "output.txt").read_text()
    assert [row["dropped/workflow_failed"] for row in steps(tmp_path)] == [0, 0]
    assert not any(one["selected"] < 1 for one in steps(tmp_path))
    assert not any("eval/reward" in row for row in read_metrics(tmp_path / METRICS)), "no agent, and no reward"
