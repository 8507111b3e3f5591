"""Whole training runs of a small Qwen on ranks that are processes: every layout gives the numbers of one process.

In float64 logits of different layouts agree so closely that the same tokens are sampled, so the runs can be compared
to their end: completions, rewards, metrics and weights.
"""

import functools
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from archon_core.run_files.pipeline import find_recordings, read_recording
from archon_testing.worlds import run_world
from archon_train.run.metrics import read_metrics

sys.path.insert(0, str(Path(__file__).parent))

from traces import assert_within, ranges_of
from trained_runs import train

TOLERANCE = 1e-9
"""Of what metrics and weights differ by, relative to 1 or to the largest of them: sums in another order."""
_OF_A_STEP = ("time/", "memory/", "tokens_per_second", "profiled")
MEASURED = (*_OF_A_STEP, *(f"warm_start/{name}" for name in _OF_A_STEP))

COMMON = """
experiment_name: layouts
seed: 1
tokenizer: {kind: characters}
actor:
  dtype: float64
  model_config:
    model_type: qwen3
    hidden_size: 16
    intermediate_size: 32
    num_hidden_layers: 2
    num_attention_heads: 8
    num_key_value_heads: 4
    head_dim: 8
    tie_word_embeddings: true
  mb_spec: {n_mbs: 2}
  optimizer: {lr: 0.01, lr_scheduler_type: SCHEDULE, warmup_steps_proportion: 0.25, decay_steps_proportion: 0.5}
  archon: {enable_compile: false}
  POLICY
trainer: {max_steps: 4, save_every: 2, eval_every: 2, verify_export: true}
"""
GRPO = """
algorithm: grpo
reward: arithmetic
data: {dataset: arithmetic, batch_size: 5, validation_size: 1, arithmetic: {max_operand: 4}}
ref: {dtype: float64, archon: {enable_compile: false}}
warm_start: {steps: 8}
rollout: {backend: local}
gconfig: {n_samples: 3, max_new_tokens: 3, temperature: 0.8}
"""
SAMPLED = """
algorithm: grpo
reward: arithmetic
data: {dataset: arithmetic, batch_size: 5, validation_size: 9, arithmetic: {max_operand: 4}}
warm_start: {steps: 40}
rollout: {backend: local}
gconfig: {n_samples: 3, max_new_tokens: 4, min_new_tokens: 1, frequency_penalty: 0.4, stop: ["1", "22"]}
eval_gconfig: {n_samples: 3, max_new_tokens: 4, top_p: 0.9, stop: ["3"], ignore_eos: true}
"""
POLICY = """ppo_n_minibatches: 2
  use_decoupled_loss: true
  rejection_sampling: {level: sequence, upper: 1.02}
  m2_threshold: 1e-3
  policy_loss: kl_cov
  kl_cov_ratio: 0.2
  kl_ctl: 0.1
  entropy_coef: 0.01
  temperature: 0.8
"""
REFILLED = """ppo_n_minibatches: 2
  dynamic_sampling: true
  dynamic_sampling_max_rounds: 6
"""
PPO = """
algorithm: ppo
reward: arithmetic
data: {dataset: arithmetic, batch_size: 7, validation_size: 1, arithmetic: {max_operand: 4}}
critic:
  dtype: float64
  mb_spec: {n_mbs: 2}
  optimizer: {lr: 0.02, lr_scheduler_type: linear, gradient_clipping: 0.5}
  archon: {enable_compile: false}
  ppo_n_minibatches: 3
  eps_clip: 0.02
  warmup_steps: 1
  gae_lambda: 1.0
  bootstrap_truncated: true
ref: {dtype: float64, archon: {enable_compile: false}}
warm_start: {steps: 8}
rollout: {backend: local}
gconfig: {n_samples: 1, max_new_tokens: 3, temperature: 0.8}
"""
CRITIC = """ppo_n_minibatches: 2
  kl_ctl: 0.1
  gae_lambda: 0.9
  adv_norm: {mean_level: batch, std_level: batch}
  temperature: 0.8
"""
SFT = """
algorithm: sft
data: {dataset: arithmetic, batch_size: 3, validation_size: 5, arithmetic: {max_operand: 4}}
"""


TASKS = {
    "grpo": (POLICY, "cosine", GRPO),
    "sampled": (REFILLED, "cosine", SAMPLED),
    "ppo": (CRITIC, "cosine", PPO),
    "sft": ("", "wsd", SFT),
}
"""Name -> the actor's options, its schedule, and the rest of the configuration."""


def rows(folder):
    return [
        {name: value for name, value in row.items() if not name.startswith(MEASURED)}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


def assert_equal_runs(found: Path, expected: Path):
    assert [list(row) for row in rows(found)] == [list(row) for row in rows(expected)]
    for row, other in zip(rows(found), rows(expected), strict=True):
        assert row == pytest.approx(other, rel=TOLERANCE, abs=TOLERANCE)
    exports = sorted(folder.name for folder in expected.glob("export*"))
    assert sorted(folder.name for folder in found.glob("export*")) == exports
    for export in exports:
        weights, others = (load_file(folder / export / "model.safetensors") for folder in (found, expected))
        assert weights.keys() == others.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(weight, others[name], rtol=0, atol=TOLERANCE * float(others[name].abs().max()))
    assert "Export verified" in (found / "output.txt").read_text()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Configuration file and folder of a task's run in one process; each runs once."""

    @functools.cache
    def run(task):
        root = tmp_path_factory.mktemp(task)
        policy, schedule, sections = TASKS[task]
        text = COMMON.replace("POLICY", policy).replace("SCHEDULE", schedule) + sections
        file = root / "config.yaml"
        file.write_text(f"{text}cluster: {{fileroot: {root}}}\n")
        run_world(train, 1, (file, "d1", "alone"), time_limit=120)
        folder = root / "layouts" / "alone"
        CHECKS[task](rows(folder))
        return file, folder

    return run


def check_policy(found):
    """There is something to learn, so that runs that are compared differ if a rank does."""
    trained = [row for row in found if "loss" in row]
    assert len(trained) == 4
    assert all(row["gradient_norm"] > 1e-3 for row in trained)
    assert any(row["reward_std"] > 0 for row in trained)
    assert trained[-1]["rollout_kl_ref"] > 1e-6
    assert any(row["m2_kept_fraction"] < 1 for row in trained)


def check_sampled(found):
    """Batches are refilled, and records have several samples."""
    steps = [row for row in found if "reward" in row]
    assert max(row["sampling_rounds"] for row in steps) > 1
    assert max(row["prompts"] for row in steps) > 5
    assert any(row["truncated"] < 1 for row in steps)
    assert any(0 < row["eval/reward_avg@3"] < 1 for row in found if "eval/reward_avg@3" in row)


def check_critic(found):
    critics = [row for row in found if "critic/loss" in row]
    assert all(row["critic/gradient_norm"] > 1e-3 for row in critics)
    assert any(0 < row["critic/value_clip_fraction"] < 1 for row in critics)
    assert len([row for row in found if "loss" in row]) == 3, "the first step trains the critic alone"


def check_supervised(found):
    trained = [row for row in found if "loss" in row]
    assert len(trained) == 4
    assert all(row["gradient_norm"] > 1e-3 for row in trained)


CHECKS = {"grpo": check_policy, "sampled": check_sampled, "ppo": check_critic, "sft": check_supervised}


@pytest.mark.wide
@pytest.mark.parametrize(("task", "layout", "n_ranks"), [("grpo", "d2p2", 4), ("sampled", "p2", 2)])
def test_a_run_on_many_ranks_gives_the_numbers_of_one_process(alone, task, layout, n_ranks):
    file, expected = alone(task)
    run, profiles = expected.parent / layout, layout == "d2p2"
    options = ("actor.archon.profile_steps=[2,2]", "actor.archon.pp_schedule=1F1B") if profiles else ()
    run_world(train, n_ranks, (file, layout, layout, options), time_limit=120)
    assert_equal_runs(run, expected)
    if profiles:
        assert_profiled(run, (2,), n_ranks)


def assert_profiled(run: Path, steps: tuple[int, ...], n_ranks: int) -> None:
    """The profiles of a run on a pipeline of two ranks."""
    trained = [row for row in read_metrics(run / "metrics.jsonl") if "loss" in row and row["step"] > 0]
    assert [row["step"] for row in trained if "profiled" in row] == [*steps]
    text = (run / "output.txt").read_text()
    assert "actor.archon.profile_steps: [2] -> traced" in text
    assert "not representative" in text
    assert "no memory snapshots" in text
    folders = [run / "profile" / f"step-{step:06d}" for step in steps]
    assert sorted((run / "profile").iterdir()) == folders
    for step, folder in zip(steps, folders, strict=True):
        traces = [folder / f"rank-{rank}.trace.json.gz" for rank in range(n_ranks)]
        assert sorted(folder.iterdir()) == [folder / "pipeline-actor.json", *traces]
        (recording,) = map(read_recording, find_recordings(folder).values())
        actions = [[str(action) for action, _, _ in rank] for rank in recording.ranks]
        assert len(actions) == 2
        for trace in traces:
            ranges = ranges_of(trace)
            assert_within(ranges, f"step {step}", "rollout", "reward", "logprobs", "update", "publish")
            assert_within(ranges, "update", "actor train_batch")
            assert_within(ranges, "logprobs", "ref forward_batch")
            assert_within(ranges, "actor train_batch", "split the batch", "gradient norm", "optimizer")
            # The recording has the step's first update, the trace all of them.
            assert any(set(rank) <= ranges.keys() for rank in actions)


@pytest.mark.parametrize(
    ("actor", "critic", "n_ranks"),
    [
        ("d2", "t2", 2),
        pytest.param("c2", "p2", 2, marks=pytest.mark.wide),
        pytest.param("d2p2", "t2c2", 4, marks=pytest.mark.wide),
    ],
)
def test_actor_and_critic_on_any_layouts_have_the_numbers_of_one_process(alone, actor, critic, n_ranks):
    file, expected = alone("ppo")
    trial = f"{actor}-{critic}"
    run_world(train, n_ranks, (file, actor, trial, (f"critic.backend=archon:{critic}",)), time_limit=120)
    assert_equal_runs(expected.parent / trial, expected)


@pytest.mark.wide
@pytest.mark.parametrize(
    ("task", "layouts"),
    [("sampled", ("d4", "d2t2", "p2t2")), ("ppo", ("d4", "d2t2", "p2c2")), ("sft", ("d4", "p2t2", "t4"))],
    ids=["sampled", "ppo", "sft"],
)
def test_a_run_goes_on_from_layout_to_layout_with_the_numbers_of_an_uninterrupted_one(alone, task, layouts):
    file, expected = alone(task)
    overrides = ("trainer.async_save=true", "trainer.keep_last=1", "actor.archon.pp_schedule=ZBV")
    for place, layout in enumerate(layouts):
        resume = ("trainer.resume=true",) if place else ()
        stopped = run_world(train, 4, (file, layout, "parts", (*overrides, *resume), place + 1), time_limit=120)
        assert stopped == [True] * 4
    run_world(train, 1, (file, "d1", "parts", (*overrides, "trainer.resume=true")), time_limit=120)
    parts = expected.parent / "parts"
    assert_equal_runs(parts, expected)
    assert [checkpoint.name for checkpoint in (parts / "checkpoints").iterdir()] == ["step-00000004"]
