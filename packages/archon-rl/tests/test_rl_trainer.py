"""The loop of reinforcement learning on stand-in engines: what it samples, trains on, writes and resumes."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from run_results import rows, table

from archon_core.errors import ConfigError, DataError, WeightsError

EXPORT_NAMES = {"table.pt", "tokenizer.json", "tokenizer_config.json"}


QWEN = """
experiment_name: test
trial_name: trial
algorithm: grpo
reward: arithmetic
cluster: {n_gpus_per_node: 1, fileroot: ROOT}
tokenizer: {kind: characters}
data: {dataset: arithmetic, batch_size: 4, validation_size: 10, arithmetic: {max_operand: 4}}
actor:
  backend: archon:d1
  dtype: float32
  model_config:
    model_type: qwen3
    hidden_size: 16
    intermediate_size: 32
    num_hidden_layers: 2
    num_attention_heads: 2
    num_key_value_heads: 1
    head_dim: 8
  ppo_n_minibatches: 2
  use_decoupled_loss: true
  kl_ctl: 0.1
  optimizer: {lr: 0.01, lr_scheduler_type: linear}
  archon: {enable_compile: false}
ref: {archon: {enable_compile: false}}
warm_start: {steps: 3}
rollout: {backend: local}
gconfig: {n_samples: 4, max_new_tokens: 3, temperature: 0.8}
trainer: {max_steps: 6, save_every: 3, eval_every: 3, verify_export: true}
"""

needs_qwen_and_rollout = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("archon_models_qwen", "archon_rollout")),
    reason="archon-models-qwen or archon-rollout is not installed",
)


def output(folder) -> str:
    return (folder.path / "output.txt").read_text(encoding="utf-8")


def test_a_run_logs_every_step_evaluates_saves_and_exports(run):
    folder = run()
    written = rows(folder)
    assert [row["step"] for row in written] == [0, 1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in written if "eval/reward" in row] == [0, 2, 4, 6]
    assert folder.checkpoint_steps() == [3, 6]
    assert {file.name for file in folder.export.iterdir()} >= EXPORT_NAMES
    for name in ("reward", "loss", "gradient_norm", "learning_rate", "ratio", "clip_fraction", "approx_kl", "entropy"):
        assert name in written[1]
    assert "Held-out records: reward 0" in output(folder)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("actor.ppo_n_minibatches=3", "actor.use_decoupled_loss=true", "ref={}", "actor.kl_ctl=0.1"),
        ("warm_start.steps=4", "ref={}", "actor.kl_loss_coef=0.1", "actor.recompute_logprob=true"),
    ],
    ids=["plain", "decoupled, reference in the reward", "warm start, reference in the loss"],
)
def test_a_resumed_run_continues_with_the_same_numbers(run, overrides):
    whole = run(*overrides, "trial_name=whole")
    with pytest.raises(KeyboardInterrupt):
        run(*overrides, "trial_name=parts", stop_after=3)
    assert not run.folder("parts").export.exists()
    parts = run(*overrides, "trial_name=parts", "trainer.resume=true")
    assert rows(parts) == rows(whole)
    torch.testing.assert_close(table(parts), table(whole), rtol=0, atol=0)


def test_a_step_whose_groups_teach_nothing_changes_no_weight_and_says_so(run):
    mixed = run("actor.dynamic_sampling=true", "trial_name=mixed")
    assert any(0 < row["selected"] < 1 for row in rows(mixed) if "reward" in row)
    # Near temperature 0 the samples of a prompt are equal, and so are their rewards.
    equal = ("actor.dynamic_sampling=true", "gconfig.temperature=1e-6")
    uniform = run(*equal, "trainer.max_steps=2", "trial_name=uniform")
    [*_, last] = rows(uniform)
    assert (last["selected"], last["updates"], last["version"]) == (0, 0, 0)
    assert "Step 2: left out 1 mini-batches" in output(uniform)


@needs_qwen_and_rollout
def test_a_real_model_resumes_exactly_and_samples_with_the_trainers_log_probabilities(run):
    whole = run("trial_name=whole", text=QWEN)
    with pytest.raises(KeyboardInterrupt):
        run("trial_name=parts", text=QWEN, stop_after=3)
    parts = run("trial_name=parts", "trainer.resume=true", text=QWEN)
    assert rows(parts) == rows(whole)
    assert (parts.export / "model.safetensors").read_bytes() == (whole.export / "model.safetensors").read_bytes()
    assert all(row["rollout_logprob_gap"] < 1e-5 for row in rows(whole) if "reward" in row)
    assert "Export verified" in output(whole)


def test_a_stopped_run_leaves_a_checkpoint_of_its_last_step(run):
    with pytest.raises(KeyboardInterrupt):
        run("trainer.save_every=0", stop_after=2)
    folder = run.folder()
    assert folder.checkpoint_steps() == [2]
    state = json.loads((folder.latest_checkpoint() / "trainer.json").read_text())
    assert state["step"] == state["version"] == 2
    assert (state["epoch"], state["position"]) == (0, 8)


def test_resuming_with_batches_of_another_size_is_refused(run):
    with pytest.raises(KeyboardInterrupt):
        run(stop_after=2)
    with pytest.raises(
        WeightsError, match=r"data\.batch_size: found 2, but the run .* started with 4, .*data\.batch_size=4"
    ):
        run("trainer.resume=true", "data.batch_size=2")


def test_a_finished_run_that_is_resumed_has_nothing_left_to_train(run):
    before = rows(run())
    assert rows(run("trainer.resume=true")) == before


def test_reinforcement_learning_raises_the_reward_it_is_given(run):
    # A table cannot multiply, but it can learn to say 0, the answer of every third problem, and to stop.
    folder = run(
        "data.arithmetic.operators='*'",
        "warm_start.steps=40",
        "warm_start.lr=0.1",
        "trainer.max_steps=40",
        "trainer.eval_every=0",
        "data.validation_size=0",
        "data.batch_size=25",
        "gconfig.n_samples=8",
    )
    rewards = [row["reward"] for row in rows(folder) if "reward" in row]
    assert sum(rewards[:5]) / 5 < 0.2
    assert sum(rewards[-5:]) / 5 > 0.3


def test_sampling_is_seeded_by_step_and_sample_and_versions_are_published(run):
    folder = run("trainer.max_steps=2", "trainer.eval_every=0", "data.validation_size=0")
    first = rows(folder)
    assert [row["version"] for row in first] == [1, 2]
    again = run("trainer.max_steps=2", "trainer.eval_every=0", "data.validation_size=0", "trial_name=again")
    assert rows(again) == first
    other = run("trainer.max_steps=2", "trainer.eval_every=0", "data.validation_size=0", "trial_name=b", "seed=2")
    assert rows(other) != first


def test_without_recomputation_the_first_ratio_is_one_at_any_temperature(run):
    folder = run("gconfig.temperature=0.5", "trainer.max_steps=1")
    row = rows(folder)[1]
    assert row["ratio"] == pytest.approx(1.0, abs=1e-12)
    assert row["approx_kl"] == pytest.approx(0.0, abs=1e-12)


def test_recomputed_log_probabilities_agree_with_those_of_the_rollout(run):
    folder = run("actor.use_decoupled_loss=true", "gconfig.temperature=0.7", "trainer.max_steps=2")
    for row in rows(folder)[1:]:
        assert row["rollout_logprob_gap"] < 1e-12
        assert row["behave_weight"] == pytest.approx(1.0)


def test_the_reference_starts_as_the_actor_and_the_kl_to_it_grows(run):
    # With few samples, most groups have equal rewards and move nothing.
    folder = run("ref={}", "actor.kl_ctl=0.01", "warm_start.steps=3", "gconfig.n_samples=16")
    distances = [row["rollout_kl_ref"] for row in rows(folder) if row["step"] > 0]
    assert distances[0] == pytest.approx(0.0, abs=1e-12)
    assert distances[-1] > 1e-4


def test_the_warm_start_is_logged_before_step_one_and_trains_the_actor(run):
    folder = run("warm_start.steps=30", "warm_start.lr=0.1", "warm_start.batch_size=8", "trainer.max_steps=1")
    warm = [row for row in rows(folder) if "warm_start/loss" in row]
    assert [row["step"] for row in warm] == list(range(-29, 1))
    assert warm[-1]["warm_start/loss"] < warm[0]["warm_start/loss"] - 0.5
    started = torch.load(folder.path / "warm_start" / "table.pt")
    assert (table(folder) - started).abs().max() < 0.1


def test_stopping_in_the_warm_start_leaves_nothing_half_done(run):
    with pytest.raises(KeyboardInterrupt, match="warm start"):
        run("warm_start.steps=5", stop_after=2)
    assert not (run.folder().path / "warm_start").exists()
    assert run.folder().checkpoint_steps() == []


def test_truncated_completions_are_not_trained_on_when_filtered(run):
    folder = run("actor.overlong_filtering=true", "gconfig.max_new_tokens=1", "trainer.max_steps=3")
    trained = rows(folder)[1:]
    assert any(row["truncated"] > 0 for row in trained)
    everything_cut = [row for row in trained if row["truncated"] == 1.0]
    for row in everything_cut:
        assert row["updates"] == 0
        assert row["left_out_updates"] == 1
    if everything_cut:
        assert "left out 1 mini-batches" in output(folder)


def test_decisions_of_preset_engines_and_vocabulary_are_recorded_and_shown(run):
    folder = run("ref={}", "actor.kl_ctl=0.1", "trainer.max_steps=1")
    options = [decision.option for decision in run.context.decisions]
    assert sorted(set(options)) == sorted(options)
    assert {"actor.reward_norm", "actor.model_config.vocab_size", "actor.dtype", "ref.dtype"} <= set(options)
    assert "Decision: actor.model_config.vocab_size: not given -> 64" in output(folder)


def test_a_vocabulary_too_small_for_the_tokenizer_is_refused(run):
    with pytest.raises(ConfigError, match=r"found vocab_size 8; allowed is at least 15"):
        run("actor.model_config.vocab_size=8")


def test_an_algorithm_without_a_reward_names_those_installed(run):
    with pytest.raises(ConfigError, match=r"reward: found none, and algorithm 'grpo' needs one; .*arithmetic.*gsm8k"):
        run("reward=null")


def test_more_minibatches_than_completions_are_refused(run):
    with pytest.raises(ConfigError, match=r"ppo_n_minibatches: found 17; .* = 16 completions"):
        run("actor.ppo_n_minibatches=17")


def test_prompts_above_the_limit_are_left_out_and_counted(run):
    folder = run("data.arithmetic.max_operand=11", "data.validation_size=0", "data.max_length=5", "trainer.max_steps=1")
    # A begin-of-text token and "a+b=" make five tokens only when both of the 12 x 12 operands have one digit.
    assert "Left out 44 of 144 training records: longer than data.max_length=5 tokens" in output(folder)
    with pytest.raises(DataError, match=r"data\.max_length: found 4, and all 144 training records are longer"):
        run("data.arithmetic.max_operand=11", "data.validation_size=0", "data.max_length=4", "trial_name=none")


def test_the_learning_rate_schedule_counts_every_update_of_a_step(run, monkeypatch):
    from archon_rl.trainer import roles

    totals = []
    build = roles.build_train_engine

    def build_counted(*args, **kwargs):
        totals.append(kwargs["total_steps"])
        return build(*args, **kwargs)

    monkeypatch.setattr(roles, "build_train_engine", build_counted)
    run("trainer.max_steps=3", "actor.ppo_n_minibatches=2")
    assert totals == [6]


def test_epochs_decide_the_number_of_steps_when_no_maximum_is_given(run):
    folder = run("trainer.max_steps=null", "trainer.max_epochs=2", "trainer.eval_every=0")
    assert rows(folder)[-1]["step"] == 2 * 11 // 4
