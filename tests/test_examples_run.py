"""The examples that the README tells a newcomer to run do run, here with fewer steps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from archon_core import parse_layout
from archon_core.cli.main import main
from archon_core.run_files.expert_load import read_loads
from archon_core.run_files.starts import read_starts
from archon_core.run_files.trajectories import read_step, steps_in
from archon_testing.worlds import run_world
from archon_train.experiment import load_config

sys.path.insert(0, str(Path(__file__).parent))

from trained_runs import train

ROOT = Path(__file__).resolve().parent.parent
EXPORTS = ("export", "export_critic")
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl"


def archon(*arguments, cwd=ROOT, timeout=300):
    command = [sys.executable, "-c", "from archon_core.cli.main import main; main()", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout)


def run_by_fork(forks, output, *arguments):
    """``archon train`` as a fork, with its output in a file."""
    command = [sys.executable, "-m", "archon_core.cli", "train", *arguments]
    with output.open("wb") as file:
        run = forks.popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    assert run.wait(300) == 0, output.read_text()


def in_world(example, fileroot, *overrides):
    """An example on the ranks of its layout without a launcher, which start faster.

    Returns:
        Its layout, and its output in one line.
    """
    file = ROOT / "examples" / f"{example}.yaml"
    layout = parse_layout(load_config(file).config.actor.backend)
    given = (f"cluster.fileroot={fileroot}", *overrides)
    run_world(train, layout.world_size, (file, str(layout).partition(":")[2], "run", given), time_limit=300)
    return str(layout), " ".join((fileroot / "arithmetic" / "run" / "output.txt").read_text().split())


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


def test_the_demo_has_a_report_and_a_view_in_the_terminal(short_demo, capsys):
    _, folder = short_demo
    for command in (["report", str(folder)], ["watch", str(folder), "--once"]):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert not ended.value.code
    output = capsys.readouterr().out
    assert output.count("finished") == 1
    assert "2/2" in output
    page = (folder / "report.html").read_text()
    [start] = read_starts(folder)
    assert start.ending == "finished"
    for text in (start.environment["torch"], "actor.backend", "2 of 2", '"eval/reward"', '"parts"'):
        assert text in page


def test_generate_answers_with_the_demos_model(short_demo, capsys):
    _, folder = short_demo
    with pytest.raises(SystemExit) as ended:
        main(["generate", str(folder / "export"), "07+35=", "--n", "2", "--max-new-tokens", "3", "--json"])
    assert not ended.value.code
    [answer] = json.loads(capsys.readouterr().out)
    assert answer["prompt"] == "07+35="
    for completion in answer["completions"]:
        assert 1 <= len(completion["token_ids"]) == len(completion["logprobs"]) <= 3
        assert all(logprob < 0 for logprob in completion["logprobs"])
    assert len(answer["completions"]) == 2


def test_a_mixture_of_experts_tells_the_load_of_its_experts_and_can_train_on_the_rollouts_choices(tmp_path):
    short = ["warm_start.steps=2", "trainer.max_steps=2", "trainer.eval_size=4", "data.batch_size=4"]
    replay = ["rollout.return_routed_experts=true", "actor.archon.moe_routing_replay=true", "gconfig.n_samples=2"]
    dump = ["rollout.dump_to_file=true", "actor.dynamic_sampling=false"]
    layout, output = in_world("grpo_arithmetic_moe", tmp_path, *short, *replay, *dump)
    assert layout == "archon:d2e2"
    assert "Export verified: logits differ from transformers' by at most" in output
    rows = metrics(tmp_path / "arithmetic" / "run")
    assert rows[0]["warm_start/moe/expert_load_max_over_mean"] >= 1.0
    trained = [row for row in rows if row["step"] > 0 and "loss" in row]
    assert all(row["moe/router_entropy"] > 0 for row in trained)
    folder = tmp_path / "arithmetic" / "run"
    loads = read_loads(folder / "expert_load-actor.jsonl")
    assert [load.step for load in loads] == list(range(1, rows[-1]["version"] + 1)), "one per update of the actor"
    for load in loads:
        assert len({sum(counts) for counts in load.layers.values()}) == 1, "every layer routes the same tokens"
    detailed = [line for line in read_step(steps_in(folder)[1]) if line.trainer_logprobs]
    assert len(detailed) == 8
    for line in detailed:
        assert line.trainer_logprobs == pytest.approx(line.logprobs, abs=1e-4)
        assert "".join(text for text, _ in line.pieces) == line.segments[-1].text


@pytest.mark.wide
def test_distillation_trains_a_teacher_then_its_student(tmp_path):
    short = ["warm_start.steps=2", "teacher.warm_start.steps=2", "trainer.max_steps=2", "trainer.eval_size=4"]
    small = ["data.batch_size=4", "gconfig.n_samples=2", "trainer.verify_export=false"]
    _, output = in_world("distill_arithmetic", tmp_path, *short, *small)
    assert "Held-out records with the teacher: reward" in output
    rows = metrics(tmp_path / "arithmetic" / "run")
    assert [row["step"] for row in rows] == [-3, -2, -1, 0, 0, 0, 1, 2]
    assert all("rollout_kl_teacher" in row for row in rows if row["step"] > 0)


@pytest.mark.examples
def test_a_small_student_reaches_its_teacher(tmp_path):
    finished = archon("train", "examples/distill_arithmetic.yaml", f"cluster.fileroot={tmp_path}", timeout=3600)
    assert finished.returncode == 0, finished.stderr
    rows = metrics(tmp_path / "arithmetic" / "distill")
    [teacher] = [row["eval/teacher_reward"] for row in rows if "eval/teacher_reward" in row]
    student = [row["eval/reward"] for row in rows if "eval/reward" in row]
    assert teacher >= 0.95
    assert student[0] <= 0.5
    assert student[-1] >= teacher - 0.05


@pytest.mark.wide
def test_ppo_trains_a_critic_beside_the_actor_and_exports_both(tmp_path):
    short = ["warm_start.steps=1", "trainer.max_steps=2", "trainer.eval_size=10", "trainer.eval_every=0"]
    tiny = ["data.batch_size=4", "gconfig.n_samples=1", "critic.warmup_steps=1"]
    in_world("ppo_arithmetic", tmp_path, *short, *tiny)
    folder = tmp_path / "arithmetic" / "run"
    first, second = [row for row in metrics(folder) if row["step"] > 0]
    assert (first["updates"], first["version"], second["version"]) == (0, 0, second["updates"])
    assert all(row["critic/gradient_norm"] > 0 and "critic/explained_variance" in row for row in (first, second))
    architectures = [json.loads((folder / name / "config.json").read_text())["architectures"] for name in EXPORTS]
    assert architectures == [["Qwen3ForCausalLM"], ["Qwen3ForSequenceClassification"]]


@pytest.mark.wide
def test_the_asynchronous_example_samples_ahead_of_training(forks, tmp_path):
    short = ["warm_start.steps=1", "trainer.max_steps=4", "trainer.eval_size=10", "trainer.eval_every=0"]
    tiny = ["data.batch_size=4", "trainer.save_every=0", "actor.dynamic_sampling=false"]
    given = [f"cluster.fileroot={tmp_path}", *short, *tiny]
    run_by_fork(forks, tmp_path / "output.txt", "examples/grpo_arithmetic_async.yaml", *given)
    rows = [row for row in metrics(tmp_path / "arithmetic" / "grpo_async") if "staleness_max" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["staleness_max"] == 0
    assert 1 <= max(row["staleness_max"] for row in rows) <= 2
    assert all(row["stale_prompts"] == 0 for row in rows)
    assert all(row["collector/busy_seconds"] > 0 for row in rows[:2])


@pytest.mark.examples
def test_asynchronous_training_learns_to_add(tmp_path):
    """The whole example: about three minutes on two cores."""
    finished = archon("train", "examples/grpo_arithmetic_async.yaml", f"cluster.fileroot={tmp_path}", timeout=3600)
    assert finished.returncode == 0, finished.stderr
    rows = metrics(tmp_path / "arithmetic" / "grpo_async")
    rewards = [row["eval/reward"] for row in rows if "eval/reward" in row]
    assert rewards[0] <= 0.5
    assert rewards[-1] >= 0.85
    assert max(row["staleness_max"] for row in rows if "staleness_max" in row) <= 2


@pytest.mark.examples
def test_ppo_learns_to_add(tmp_path):
    """The whole example: about four minutes on two cores."""
    finished = archon("train", "examples/ppo_arithmetic.yaml", f"cluster.fileroot={tmp_path}", timeout=3600)
    assert finished.returncode == 0, finished.stderr
    rewards = [row["eval/reward"] for row in metrics(tmp_path / "arithmetic" / "ppo") if "eval/reward" in row]
    assert rewards[0] <= 0.5
    assert rewards[-1] >= 0.85


@pytest.mark.wide
def test_supervised_fine_tuning_on_real_text_lowers_the_loss(forks, tmp_path):
    if not GSM8K.is_file():
        pytest.skip(f"needs GSM8K's train.jsonl at {GSM8K}, which is not part of the project")
    given = (f"data.path={GSM8K}", "trainer.max_steps=8", f"cluster.fileroot={tmp_path}")
    run_by_fork(forks, tmp_path / "output.txt", "examples/sft_jsonl.yaml", *given)
    losses = [row["loss"] for row in metrics(tmp_path / "sft" / "jsonl") if "loss" in row]
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.3
