"""The examples that the README tells a newcomer to run do run, here with fewer steps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXPORTS = ("export", "export_critic")
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl"


def archon(*arguments, cwd=ROOT, timeout=300):
    command = [sys.executable, "-c", "from archon_core.cli.main import main; main()", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def short_demo(tmp_path_factory):
    fileroot = tmp_path_factory.mktemp("demo")
    short = ["warm_start.steps=2", "trainer.max_steps=2", "trainer.eval_size=20", "data.batch_size=4"]
    finished = archon("train", "examples/grpo_arithmetic.yaml", f"cluster.fileroot={fileroot}", *short)
    assert finished.returncode == 0, finished.stderr
    return finished, fileroot / "arithmetic" / "grpo"


def test_the_demo_warms_up_trains_evaluates_and_checks_its_export_with_transformers(short_demo):
    finished, folder = short_demo
    rows = metrics(folder)
    assert [row["step"] for row in rows] == [-1, 0, 0, 1, 2]
    assert "eval/reward" in rows[-1]
    dims = "Initialized Archon engine with parallel dims: pp=1, dp_shard=2, tp=1, cp=1, ep=1, etp=1"
    assert finished.stdout.count(dims) == 2, "the warm start's engine and the actor"
    assert "Export verified: logits differ from transformers' by at most" in finished.stdout
    assert {"config.yaml", "decisions.json", "tensorboard", "checkpoints", "export"} <= {
        path.name for path in folder.iterdir()
    }


def test_generate_answers_with_the_demos_model(short_demo):
    _, folder = short_demo
    finished = archon("generate", str(folder / "export"), "07+35=", "--n", "2", "--max-new-tokens", "3", "--json")
    assert finished.returncode == 0, finished.stderr
    [answer] = json.loads(finished.stdout)
    assert answer["prompt"] == "07+35="
    for completion in answer["completions"]:
        assert 1 <= len(completion["token_ids"]) == len(completion["logprobs"]) <= 3
        assert all(logprob < 0 for logprob in completion["logprobs"])
    assert len(answer["completions"]) == 2


def test_a_mixture_of_experts_tells_the_load_of_its_experts_and_can_train_on_the_rollouts_choices(tmp_path):
    short = ["warm_start.steps=2", "trainer.max_steps=2", "trainer.eval_size=20", "data.batch_size=4"]
    replay = ["rollout.return_routed_experts=true", "actor.archon.moe_routing_replay=true"]
    finished = archon("train", "examples/grpo_arithmetic_moe.yaml", f"cluster.fileroot={tmp_path}", *short, *replay)
    assert finished.returncode == 0, finished.stderr
    assert "Initialized Archon engine with parallel dims: pp=1, dp_shard=2, tp=1, cp=1, ep=2, etp=1" in finished.stdout
    assert "Export verified: logits differ from transformers' by at most" in finished.stdout
    rows = metrics(tmp_path / "arithmetic" / "grpo_moe")
    assert rows[0]["warm_start/moe/expert_load_max_over_mean"] >= 1.0
    trained = [row for row in rows if row["step"] > 0 and "loss" in row]
    assert all(row["moe/router_entropy"] > 0 for row in trained)


def test_ppo_trains_a_critic_beside_the_actor_and_exports_both(tmp_path):
    short = ["warm_start.steps=1", "trainer.max_steps=2", "trainer.eval_size=10", "trainer.eval_every=0"]
    tiny = ["data.batch_size=4", "gconfig.n_samples=1", "critic.warmup_steps=1"]
    finished = archon("train", "examples/ppo_arithmetic.yaml", f"cluster.fileroot={tmp_path}", *short, *tiny)
    assert finished.returncode == 0, finished.stderr
    folder = tmp_path / "arithmetic" / "ppo"
    first, second = [row for row in metrics(folder) if row["step"] > 0]
    assert (first["updates"], first["version"], second["version"]) == (0, 0, second["updates"])
    assert all(row["critic/gradient_norm"] > 0 and "critic/explained_variance" in row for row in (first, second))
    architectures = [json.loads((folder / name / "config.json").read_text())["architectures"] for name in EXPORTS]
    assert architectures == [["Qwen3ForCausalLM"], ["Qwen3ForSequenceClassification"]]


@pytest.mark.wide
def test_ppo_learns_to_add(tmp_path):
    """The whole example: about four minutes on two cores."""
    finished = archon("train", "examples/ppo_arithmetic.yaml", f"cluster.fileroot={tmp_path}", timeout=3600)
    assert finished.returncode == 0, finished.stderr
    rewards = [row["eval/reward"] for row in metrics(tmp_path / "arithmetic" / "ppo") if "eval/reward" in row]
    assert rewards[0] <= 0.5
    assert rewards[-1] >= 0.85


@pytest.mark.wide
def test_supervised_fine_tuning_on_real_text_lowers_the_loss(tmp_path):
    if not GSM8K.is_file():
        pytest.skip(f"needs GSM8K's train.jsonl at {GSM8K}, which is not part of the project")
    finished = archon(
        "train", "examples/sft_jsonl.yaml", f"data.path={GSM8K}", "trainer.max_steps=8", f"cluster.fileroot={tmp_path}"
    )
    assert finished.returncode == 0, finished.stderr
    losses = [row["loss"] for row in metrics(tmp_path / "sft" / "jsonl") if "loss" in row]
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.3
