"""Runs with a teacher, on stand-in engines: what is trained, evaluated, written, resumed and refused."""

from __future__ import annotations

import pytest
import torch
from bigram_engine import BigramEngine
from run_results import rows, table

from archon_core.errors import ConfigError, DataError
from archon_core.ranks.ranks import DataRanks
from archon_rl.tokenization import characters_tokenizer
from archon_rl.trainer.sharing import SharedEngine

TEACHER = (
    "teacher.engine_type=train",
    "teacher.model_config={model_type: qwen3}",
    "teacher.warm_start={steps: 30, lr: 0.1, batch_size: 8}",
)
PURE = (*TEACHER, "teacher.rl_loss_weight=0", "teacher.distill_loss_weight=1.0")
NO_REWARD = ("reward=null", "gconfig.n_samples=1", "trainer.eval_every=0", "data.batch_size=11")


def output(folder) -> str:
    return (folder.path / "output.txt").read_text(encoding="utf-8")


def trained(folder) -> list[dict[str, float]]:
    return [row for row in rows(folder) if "loss" in row]


def test_pure_distillation_without_a_reward_moves_the_actor_to_its_teacher(run):
    small = ("actor.model_config.vocab_size=15", "teacher.model_config.vocab_size=15", "gconfig.n_samples=8")
    steps = ("teacher.warm_start={steps: 40, lr: 0.2}", "trainer.max_steps=20", "trainer.save_every=0")
    folder = run(*PURE, *NO_REWARD, *small, *steps, "actor.optimizer.lr=0.3")
    found = trained(folder)
    kl = [row["rollout_kl_teacher"] for row in found]
    assert sum(kl[:5]) / 5 > 1.0
    assert sum(kl[-5:]) / 5 < 0.3
    assert not {"reward", "reward_std", "eval/reward"} & set(found[0])
    assert found[0]["loss"] == pytest.approx(found[0]["teacher_kl"]) == pytest.approx(found[0]["distill_loss"])


def test_the_loss_is_the_kl_that_the_step_measures_weighted(run):
    """In the first update the ratio is 1: the loss is the weight times the mean gap of the rollout's tokens."""
    once = (*TEACHER, "trainer.max_steps=1", "teacher.distill_loss_weight=0.5")
    [row] = trained(run(*once, "teacher.rl_loss_weight=0"))
    assert row["loss"] == pytest.approx(0.5 * row["rollout_kl_teacher"], rel=1e-12)
    [row] = trained(run(*once, "teacher.rl_loss_weight=2", "trial_name=joint"))
    # A term's metric is its share of the objective.
    assert row["loss"] == pytest.approx(row["policy_loss"] + 0.5 * row["rollout_kl_teacher"], rel=1e-12)


def test_the_teacher_learns_before_step_one_and_its_reward_is_reported(run):
    folder = run(*PURE, "warm_start.steps=4", "trainer.max_steps=2")
    warm = [row for row in rows(folder) if "teacher_warm_start/loss" in row]
    assert [row["step"] for row in warm] == list(range(-33, -3))
    assert warm[-1]["teacher_warm_start/loss"] < warm[0]["teacher_warm_start/loss"] - 0.5
    assert [row["step"] for row in rows(folder) if "warm_start/loss" in row] == [-3, -2, -1, 0]
    [reported] = [row for row in rows(folder) if "eval/teacher_reward" in row]
    assert reported["step"] == 0
    assert "Held-out records with the teacher: reward" in output(folder)
    assert (folder.path / "teacher_warm_start" / "table.pt").is_file()


def test_the_teacher_is_frozen_and_offloaded_between_uses(run, monkeypatch):
    engines, build = [], BigramEngine.__init__
    monkeypatch.setattr(BigramEngine, "__init__", lambda self, *a, **k: engines.append(self) or build(self, *a, **k))
    folder = run(*PURE, "teacher.offload=true", "trainer.max_steps=3")
    assert [engine.role for engine in engines] == ["teacher", "actor", "teacher"]
    teacher = engines[-1]
    assert teacher.offloaded
    assert teacher.closed
    assert torch.equal(teacher.table, torch.load(folder.path / "teacher_warm_start" / "table.pt"))
    kept = run(*PURE, "trainer.max_steps=3", "trial_name=kept")
    assert rows(kept) == rows(folder)
    assert not engines[-1].offloaded


class FailingEngine:
    """An engine in host memory whose forward pass raises."""

    data_ranks = DataRanks()

    def __init__(self):
        self.calls = []

    def onload(self):
        self.calls.append("onload")

    def offload(self):
        self.calls.append("offload")

    def forward_batch(self, batch, request):
        self.calls.append("forward")
        raise OSError("device lost")


def test_an_engine_that_fails_is_offloaded_again():
    engine = FailingEngine()
    with pytest.raises(OSError, match="device lost"):
        SharedEngine(engine, offloads=True).forward_batch(None, None)
    assert engine.calls == ["onload", "forward", "offload"]


@pytest.mark.parametrize("overrides", [PURE, (*TEACHER, "actor.ppo_n_minibatches=2")], ids=["pure", "joint"])
def test_layouts_of_actor_and_teacher_change_no_number(run, overrides):
    alone = run(*overrides, "trainer.max_steps=3", "trial_name=alone")
    for actor, teacher in (("d2", "t2"), ("t2", "d2"), ("d2", "")):
        backends = (f"actor.backend=bigram:{actor}", f"teacher.backend={teacher and f'bigram:{teacher}'}")
        trial = f"trial_name={actor}{teacher}"
        together = run(*overrides, "trainer.max_steps=3", *backends, trial, "teacher.offload=true", ranks=2)
        for row, other in zip(rows(together), rows(alone), strict=True):
            assert row == pytest.approx(other, rel=1e-9, abs=1e-9)
        torch.testing.assert_close(table(together), table(alone), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("overrides", [(*PURE, *NO_REWARD), (*TEACHER, "warm_start.steps=2")], ids=["pure", "joint"])
def test_a_resumed_run_keeps_its_teacher_and_continues_with_the_same_numbers(run, overrides):
    overrides = (*overrides, "teacher.warm_start.steps=2")
    whole = run(*overrides, "trial_name=whole")
    with pytest.raises(KeyboardInterrupt):
        run(*overrides, "trial_name=parts", stop_after=3)
    parts = run(*overrides, "trial_name=parts", "trainer.resume=true")
    assert rows(parts) == rows(whole)
    torch.testing.assert_close(table(parts), table(whole), rtol=0, atol=0)


def test_stopping_while_the_teacher_learns_keeps_nothing(run):
    with pytest.raises(KeyboardInterrupt, match="stopped in the teacher warm start"):
        run(*PURE, stop_after=2)
    assert not (run.folder().path / "teacher_warm_start").exists()


def test_held_out_prompts_must_fit_a_teacher_that_is_evaluated(run):
    """The teacher generates the completions of its evaluation, so its context limits the held-out prompts."""
    limited = (*PURE, "teacher.model_config.max_position_embeddings=7", "actor.model_config.max_position_embeddings=9")
    overrides = (*limited, "gconfig.max_new_tokens=2", "eval_gconfig.max_new_tokens=3", "trainer.max_steps=1")
    with pytest.raises(DataError, match=r"held-out records .* 7 positions .* eval_gconfig\.max_new_tokens=3 of them"):
        run(*overrides)
    run(*overrides, "trainer.eval_before_train=false", "trial_name=unevaluated")


def test_ppo_learns_from_its_critic_and_a_teacher(run):
    ppo = ("algorithm=ppo", "critic={}", "trainer.max_steps=2")
    [_, row] = trained(run(*TEACHER, *ppo))
    assert {"policy_loss", "distill_loss", "critic/loss", "rollout_kl_teacher"} <= set(row)
    with pytest.raises(ConfigError, match=r"teacher\.rl_loss_weight: found 0 with algorithm=ppo; .*set algorithm=grpo"):
        run(*PURE, *ppo, "trial_name=pure")


def test_the_joint_loss_needs_a_reward(run):
    with pytest.raises(ConfigError, match=r"reward: found none, and algorithm 'grpo' needs one"):
        run(*TEACHER, "reward=null")


def test_a_smaller_vocabulary_than_the_actors_is_refused(run):
    with pytest.raises(
        ConfigError, match=r"teacher\.model_config: found a vocabulary of 64 .*at least 128, the actor's"
    ):
        run(*PURE, "actor.model_config.vocab_size=128")
    with pytest.raises(ConfigError, match=r"teacher\.model_config: found vocab_size 8; allowed is at least 15"):
        run(*PURE, "teacher.model_config.vocab_size=8")


AREAL = """
total_train_steps: 2
teacher:
  engine_type: train
  offload: true
  rl_loss_weight: 0
  distill_loss_weight: "5e-3"
  train: {backend: "bigram:t2", path: large-model, kl_ctl: 0.2, temperature: 0.5, optimizer: null}
actor: {backend: "bigram:d1", path: small-model}
"""


def test_a_file_of_areal_names_the_engine_under_teacher_train(run):
    teacher = run.config(text=AREAL).teacher
    assert (teacher.engine_type, teacher.offload) == ("train", True)
    assert (teacher.rl_loss_weight, teacher.distill_loss_weight) == (0.0, 0.005)
    assert (teacher.backend, teacher.path, teacher.temperature) == ("bigram:t2", "large-model", 0.5)
    with pytest.raises(ConfigError, match=r"teacher\.rollout\.backend: found none with .*rollout, AReaL's default"):
        run.config(text=AREAL.replace("  engine_type: train\n", ""))


@pytest.fixture
def checkpoint(tmp_path):
    """A teacher's folder with the tokenizer of these characters."""

    def make(characters: str):
        folder = tmp_path / "teacher"
        folder.mkdir()
        tokenizer = characters_tokenizer([characters])
        tokenizer.save_pretrained(folder)
        torch.save(torch.zeros(64, 64, dtype=torch.float64), folder / "table.pt")
        return (
            "teacher.engine_type=train",
            f"teacher.path={folder}",
            "teacher.rl_loss_weight=0",
            "trainer.max_steps=1",
        )

    return make


def test_a_tokenizer_with_other_ids_is_refused(run, checkpoint):
    with pytest.raises(
        ConfigError,
        match=r"teacher\.path: found .*, whose tokenizer has other ids for 11 of 15 tokens: .\+. is 4 here",
    ):
        run(*checkpoint("0123456789a"))


def test_a_tokenizer_that_lacks_tokens_is_a_decision(run, checkpoint):
    # The run has + 0 ... 4 5 ... 8 =; the teacher lacks the last of them.
    run(*checkpoint("+012345678"))
    [decision] = [d for d in run.context.decisions if d.option == "teacher.path"]
    assert decision.effective == "without 1 of its tokens: '='"


def test_a_teacher_without_a_tokenizer_is_compared_by_size(run, checkpoint):
    overrides = checkpoint("+0")
    (run.root / "teacher" / "tokenizer.json").unlink()
    run(*overrides)
    [decision] = [d for d in run.context.decisions if d.option == "teacher.path"]
    assert decision.effective == "compared by its size alone"


@pytest.mark.parametrize(("option", "allowed"), [("steps=-3", "from 0"), ("lr=0", "above 0"), ("batch_size=0", "1")])
def test_supervised_steps_that_make_no_sense_are_refused(run, option, allowed):
    name = option.partition("=")[0]
    for section in ("warm_start", "teacher.warm_start"):
        with pytest.raises(ConfigError, match=rf"{section}\.{name}: found .*{allowed}"):
            run(*TEACHER, f"{section}.{option}")
