"""The examples of preference training reach their bars, and a run that is killed goes on from its checkpoint."""

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

from archon_testing.fork_server import ForkedProcess, ForkServer

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "archon_core.cli", "train"]
PAIRS = ROOT / "examples" / "arithmetic_preferences.jsonl"


def train(forks: ForkServer, folder: Path, example: str, *overrides: str) -> str:
    """Run an example in a folder; returns its output."""
    command = [*COMMAND, f"examples/{example}", f"cluster.fileroot={folder}", *overrides]
    output = folder / "output.txt"
    with output.open("wb") as file:
        run = forks.popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    assert run.wait(900) == 0, output.read_text(encoding="utf-8")
    return output.read_text(encoding="utf-8")


def rows(folder: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    of_a_step = ("time", "memory", "tokens_per_second")
    measured = ("wall", *of_a_step, *(f"warm_start/{name}" for name in of_a_step))
    return [{name: value for name, value in row.items() if not name.startswith(measured)} for row in found]


def test_every_record_of_the_example_has_a_right_and_a_wrong_sum():
    records = [json.loads(line) for line in PAIRS.read_text().splitlines()]
    assert len({record["prompt"] for record in records}) == len(records) == 1600
    for record in records:
        a, b = map(int, re.fullmatch(r"(\d\d)\+(\d\d)=", record["prompt"]).groups())
        assert record["chosen"] == f"{a + b:02d}" != record["rejected"]


@pytest.mark.wide
def test_the_example_trains_and_checks_its_export(forks, tmp_path):
    short = ["warm_start.steps=2", "trainer.max_steps=2", "trainer.eval_size=20", "data.batch_size=8"]
    output = train(forks, tmp_path, "dpo_jsonl.yaml", *short)
    assert "Export verified: logits differ from transformers' by at most" in output
    first = next(row for row in rows(tmp_path / "preferences" / "dpo") if "loss" in row)
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert first["margin"] == pytest.approx(0, abs=1e-5)


@pytest.mark.examples
@pytest.mark.slow
def test_dpo_ranks_held_out_pairs_right(forks, tmp_path):
    train(forks, tmp_path, "dpo_jsonl.yaml")
    evaluated = [row for row in rows(tmp_path / "preferences" / "dpo") if "eval/loss" in row]
    assert evaluated[0]["eval/policy_accuracy"] <= 0.8
    assert evaluated[-1]["eval/policy_accuracy"] >= 0.9
    assert evaluated[-1]["eval/accuracy"] >= 0.9
    assert evaluated[-1]["eval/loss"] <= 0.35


@pytest.mark.examples
@pytest.mark.slow
def test_a_reward_model_ranks_held_out_pairs_right_and_trains_a_policy(forks, tmp_path):
    output = train(forks, tmp_path, "rw_jsonl.yaml")
    assert "Export verified: scores differ from transformers' by at most" in output
    folder = tmp_path / "preferences"
    assert rows(folder / "rw")[-1]["eval/accuracy"] >= 0.85
    train(forks, tmp_path, "grpo_reward_model.yaml", f"reward_model.path={folder / 'rw' / 'export'}")
    scores = [row["eval/reward"] for row in rows(folder / "grpo") if "eval/reward" in row]
    assert scores[-1] > scores[0] + 1


@pytest.mark.wide
@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_reference_of_its_start(forks, tmp_path):
    def start(*overrides: str, output: Path) -> ForkedProcess:
        with output.open("wb") as file:
            command = [*COMMAND, "examples/dpo_jsonl.yaml", f"cluster.fileroot={tmp_path}", *overrides, *options]
            return forks.popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)

    options = ["trainer.max_steps=6", "trainer.save_every=2", "trainer.eval_every=0", "warm_start.steps=1"]
    options += ["trainer.verify_export=false", "data.batch_size=10"]
    assert start("trial_name=whole", output=tmp_path / "whole.txt").wait(600) == 0, (tmp_path / "whole.txt").read_text()
    folder = tmp_path / "preferences" / "killed"
    process, until = start("trial_name=killed", output=tmp_path / "killed.txt"), time.monotonic() + 600
    while not (folder / "checkpoints" / "step-00000002").is_dir():
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < until
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reference = folder / "reference" / "logprobs.safetensors"
    before = (reference.stat().st_mtime_ns, reference.read_bytes())
    resumed = start("trial_name=killed", "trainer.resume=true", output=tmp_path / "resumed.txt")
    code, output = resumed.wait(600), (tmp_path / "resumed.txt").read_text()
    assert code == 0, output
    assert "Resuming after step" in output
    assert not re.search(r"^reference \d+/\d+", output, re.MULTILINE)
    assert (reference.stat().st_mtime_ns, reference.read_bytes()) == before
    whole, killed = tmp_path / "preferences" / "whole", folder
    assert (killed / "export" / "model.safetensors").read_bytes() == (
        whole / "export" / "model.safetensors"
    ).read_bytes()
    assert rows(killed)[-1] == rows(whole)[-1]
